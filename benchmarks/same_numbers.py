"""Compares loss curves with fixed seeds, step by step, between these sources and an earlier commit.

    python benchmarks/same_numbers.py --before COMMIT

Both train the same models on the same synthetic scenes, each in its own processes with one CPU thread, so that two
runs of the same source are bit-equal. In float32 a different order of operations changes the last digit. AdamW
amplifies this step by step, because its first steps follow the sign of a gradient however small it is. The float64
curves show whether that is the only difference: there, such a difference is about 10^9 times smaller.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import Line, arguments, write
from methods_on_scenes import write_teacher

ROOT = Path(__file__).parents[1]
CUSA = ["--model.methods+=CUSA"]
D2S = ["--model.methods+=D2S", "--model.methods.num_prompts=8", "--model.methods.depth=1"]
VARIANTS = {
    "ResNet and BERT, InfoNCE": [],
    "ViT and BERT with GPO, triplet": [
        "--model.backbone=VSE",
        "--model.objective=Triplet",
        "--model.objective.hardest_after=0.5",
    ],
    "small CLIP, sigmoid": ["--model.backbone=CLIP", "--model.objective=Sigmoid"],
    "CUSA": [*CUSA, "--model.methods.alpha=1"],
    "D2S-VSE, without a first stage": D2S,
    "CUSA and D2S-VSE, one pair per caption": [*CUSA, *D2S, "--data.captions=all"],
}

BOUNDS = {"32-true": None, "64-true": 1e-9}  # by training precision


def losses(source: Path, variant: list[str], data: Path, steps: int) -> list[float]:
    """Return the loss of each step in a short run with the sources in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--config=demo.yaml", f"--data.root={data / 'shards'}", f"--data.features={data / 'teacher'}",
            f"--trainer.default_root_dir={folder}", f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1",
            "--data.val_split=null", "--data.batch_size=32", "--data.augmentation.crop_scale=[0.5, 1.0]",
            "--data.augmentation.horizontal_flip=0.5", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false", *variant,
        ]  # fmt: skip
        itr(source, "fit", *options)
        with next(Path(folder).glob("logs/**/metrics.csv")).open(newline="") as file:
            return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def itr(source: Path, *options: str) -> None:
    """Run an itr command with the sources in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source / "src")}
    command = [sys.executable, "-m", "itr", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=source)
    if done.returncode:
        raise RuntimeError(f"itr {' '.join(options)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def checkout(commit: str, folder: Path) -> Path:
    """Extract the files of a commit."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
    return folder


def compared(what: str, before: list[float], after: list[float], at_most: float | None) -> Line:
    """Return the largest difference between two curves, relative to the earlier one."""
    found = [abs(new - old) / abs(old) for old, new in zip(before, after, strict=True)]
    remark = f"{found[0]:.1e} at the first step, {found[-1]:.1e} at the last, where the loss is {after[-1]:.6f}."
    return Line(f"{what}: largest relative difference", "", max(found), at_most=at_most, remark=remark)


def main() -> None:
    """Train, compare and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--before", default="HEAD", help="commit to compare with")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    steps, images = (3, 100) if options.quick else (options.steps, 400)
    chosen = dict(list(VARIANTS.items())[:1]) if options.quick else VARIANTS
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        earlier = ROOT if options.quick else checkout(options.before, data / "before")
        itr(ROOT, "prepare", "scenes", f"--out={data / 'shards'}", f"--train={images}", "--val=8", "--test=8")
        write_teacher(data / "shards", data / "teacher")
        lines = []
        for name, given in chosen.items():
            for precision in BOUNDS:
                precise = [*given, f"--trainer.precision={precision}"]
                curves = [losses(source, precise, data, steps) for source in (earlier, ROOT)]
                lines.append(compared(f"{name}, {precision}", *curves, BOUNDS[precision]))
    settings = {"before": options.before, "steps": steps, "pairs per batch": 32}
    write(options.out, "same_numbers", lines, settings, {})


if __name__ == "__main__":
    main()
