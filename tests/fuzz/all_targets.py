"""All targets, as the tests and the campaign run them."""

from __future__ import annotations

import fuzz_checkpoints
import fuzz_features
import fuzz_images
import fuzz_shards
import fuzz_tables
from judging import Target

TARGETS: list[Target] = [
    *fuzz_shards.TARGETS,
    *fuzz_images.TARGETS,
    *fuzz_tables.TARGETS,
    *fuzz_features.TARGETS,
    *fuzz_checkpoints.TARGETS,
]
