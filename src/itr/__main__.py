"""`python -m itr` is `itr`."""

import sys

from itr.cli import main

sys.exit(main())
