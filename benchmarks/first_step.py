"""The command `itr`, ended by its first step of training; `start_up.py` runs it and notes when it says what.

python benchmarks/first_step.py fit --config demo.yaml
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `itr` itself does before torch is imported

from itr.cli import main
from itr.runs.callbacks import History
from measuring import synchronise

IMPORTED = "everything is imported"
MOMENTS = {
    "on_fit_start": "the model is built",
    "on_train_start": "the sanity check is done",
    "on_train_batch_start": "the first batch is there",
    "on_train_batch_end": "the first step is done",
}


def _say(text: str, last: bool) -> Any:
    def hook(*_: Any) -> None:
        synchronise()
        print(f"\n{text}", flush=True)  # on a line of its own, after the progress bar
        if last:
            os._exit(0)

    return hook


if __name__ == "__main__":
    for name, text in MOMENTS.items():
        setattr(History, name, _say(text, name == "on_train_batch_end"))
    print(IMPORTED, flush=True)
    sys.exit(main(sys.argv[1:]))
