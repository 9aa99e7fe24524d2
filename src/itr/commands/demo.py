"""`itr demo`: all steps on synthetic images, by the commands that a user would give."""

from __future__ import annotations

import itertools
import shlex
from importlib import import_module
from pathlib import Path

from itr.commands.parsing import FriendlyParser

NEXT = """
What to try next:
  itr report {run}    (figures, curves and images on one page: {run}/report/index.html)
  itr fit --config demo.yaml --data.root {shards} --trainer.default_root_dir runs/clip --model.backbone CLIP
  itr fit --config demo.yaml --data.root {shards} --trainer.default_root_dir runs/triplet --model.objective Triplet
  itr fit --config {run}/config.yaml --ckpt_path last --trainer.max_epochs {epochs}    (resume this run)
  itr prepare table --root FOLDER --out shards    (your own images; the README says what FOLDER holds)
  itr fit --config photos.yaml --data.root shards    (pretrained towers for them, after `pip install 'itr[offline]'`)
  tensorboard --logdir {run}"""


def main(arguments: list[str]) -> int:
    """Prepare scenes, train and test; return the exit status."""
    parser = FriendlyParser(prog="itr demo", description="Make a small data set, train on it and test.")
    parser.add_argument("--out", type=str, default="runs/demo", help="run folder; if it exists, a new name is used")
    run = _free(Path(parser.parse_args(arguments[1:]).out))
    shards = run / "shards"
    steps = [("itr.data.preparing.command", f"prepare scenes --out {shlex.quote(str(shards))}")]
    where = f"--data.root {shlex.quote(str(shards))} --trainer.default_root_dir {shlex.quote(str(run))}"
    steps.append(("itr.runs.command", f"fit --config demo.yaml {where}"))
    steps.append(("itr.runs.command", f"test --config demo.yaml {where} --ckpt_path best"))
    for module, command in steps:
        print(f"\n$ itr {command}", flush=True)
        if status := import_module(module).main(shlex.split(command)):
            return int(status)
    print(f"\nEverything is in {run}: shards/, checkpoints/best.ckpt, metrics.json, config.yaml, logs/.")
    print(NEXT.format(run=run, shards=shards, epochs=40))
    return 0


def _free(wanted: Path) -> Path:
    """The folder, or the first of `folder-2`, `folder-3` ... that does not exist yet."""
    names = itertools.chain([wanted], (wanted.with_name(f"{wanted.name}-{n}") for n in itertools.count(2)))
    return next(path for path in names if not path.exists())
