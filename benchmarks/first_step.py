"""Runs the command `itr` until its first training step; `start_up.py` records the time of each message.

python benchmarks/first_step.py fit --config demo.yaml
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `itr` does before it imports torch

from itr.cli import main
from itr.runs.callbacks import History
from measuring import synchronise

IMPORTED = "imports done"
MOMENTS = {
    "on_fit_start": "model built",
    "on_train_start": "sanity check done",
    "on_train_batch_start": "first batch loaded",
    "on_train_batch_end": "first step done",
}


def _report(text: str, last: bool) -> Any:
    def hook(*_: Any) -> None:
        synchronise()
        print(f"\n{text}", flush=True)  # on a separate line, after the progress bar
        if last:
            os._exit(0)

    return hook


if __name__ == "__main__":
    for name, text in MOMENTS.items():
        setattr(History, name, _report(text, name == "on_train_batch_end"))
    print(IMPORTED, flush=True)
    sys.exit(main(sys.argv[1:]))
