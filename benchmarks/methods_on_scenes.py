"""Compares each method with its baseline on synthetic scenes, over several seeds, as a table for the docs.

    python benchmarks/methods_on_scenes.py --out runs/methods_on_scenes

The teacher is the ground truth: two images, or two captions, are the more similar the more attributes their
objects share. CUSA's soft labels are therefore ideal, and its figures are an upper bound for any real teacher.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from itr.data.features.headers import FeaturePaths
from itr.data.scenes.world import ATTRIBUTES, BACKGROUNDS
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.data.shards.tars import read_tar
from itr.images.transforms import EvaluationTransform, decode
from itr.module import RetrievalModule
from method_runs import folder_of, itr_command, markdown, spread, workers, write_features

CUSA = [
    "--model.methods+=CUSA", "--model.methods.head_init=identity", "--model.methods.targets=add",
    *(f"--model.methods.{kind}_temperature={{initial: 0.1, bounds: [0.01, 1.0]}}" for kind in ("cross", "uni")),
    *(f"--model.methods.{kind}_soft_temperature.initial=0.15" for kind in ("cross", "uni")),
]  # fmt: skip
D2S = ["--model.methods+=D2S", "--model.methods.num_prompts=8", "--model.methods.depth=1", "--model.methods.gain=0"]
PRETRAINED = ["--model.methods.stage1=STAGE1"]
STAGE1 = "D2S stage 1 only"
ALIGN = "--model.methods.weight=0"
DISTIL = "--model.methods.weight=0.3"
BOTH = ["--model.methods.alpha=1", "--model.methods.beta=3"]
# Chosen on val; see docs/methods_on_scenes.md.
VARIANTS: dict[str, list[str]] = {
    STAGE1: ["--data.texts=dense", "--data.captions=1", "--data.batch_size=64", "--model.backbone.word_mask=0.5"],
    "baseline": [],
    "baseline, twice the epochs": ["--trainer.max_epochs=TWICE"],
    "CSA": [*CUSA, "--model.methods.alpha=1", "--model.methods.beta=0"],
    "USA": [*CUSA, "--model.methods.alpha=0", "--model.methods.beta=3"],
    "CUSA": [*CUSA, *BOTH],
    "D2S: alignment": [*D2S, ALIGN],
    "D2S without pre-training": [*D2S, DISTIL],
    "D2S: pre-training, alignment": [*D2S, *PRETRAINED, ALIGN],
    "D2S": [*D2S, *PRETRAINED, DISTIL],
    "CUSA+D2S": [*CUSA, *BOTH, *D2S, *PRETRAINED, DISTIL],
}  # fmt: skip
FIGURES = {
    "rsum": "test/rsum",
    "i2t R@1": "test/i2t_r1",
    "t2i R@1": "test/t2i_r1",
    "i2t mAP@R": "test/all/i2t_map_at_r",
    "t2i mAP@R": "test/all/t2i_map_at_r",
    "image-image": "image-image",
    "text-text": "text-text",
}
VOCABULARY = [(name, value) for name, values in ATTRIBUTES.items() for value in values]
PAIRS = {pair: i for i, pair in enumerate(itertools.combinations(VOCABULARY, 2))}


def description(objects: list[dict[str, str]], background: str | None) -> np.ndarray:
    """Count the attributes, the pairs of attributes of one object, and the background that a scene or claim names."""
    vector = np.zeros(len(VOCABULARY) + len(PAIRS) + len(BACKGROUNDS), dtype=np.float32)
    for item in objects:
        named = [(name, item[name]) for name in ATTRIBUTES if name in item]
        for value in named:
            vector[VOCABULARY.index(value)] += 1
        for pair in itertools.combinations(named, 2):
            vector[len(VOCABULARY) + PAIRS[pair]] += 1
    if background:
        vector[-1 - BACKGROUNDS.index(background)] += 1
    return vector


def truth_vectors(shards: Path, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the ids and description vectors of the images and of the captions in a split."""
    images, texts = [], []
    for shard in find_split(shards, split).shards:
        for sample in read_tar(shard.place):
            scene = sample.meta["scene"]
            images.append((sample.image_id, description(scene["objects"], scene["background"])))
            for number, claim in zip(sample.caption_ids, sample.meta["claims"], strict=True):
                texts.append((number, description(claim["objects"], claim.get("background"))))
    return {
        name: (np.array([i for i, _ in rows]), np.stack([v for _, v in rows]))
        for name, rows in (("image", images), ("text", texts))
    }


def write_teacher(shards: Path, folder: Path) -> None:
    """Write the ground truth of the training split as feature files."""
    identity = data_identity(find_split(shards, "train"))
    for modality, (ids, vectors) in truth_vectors(shards, "train").items():
        paths = FeaturePaths(folder, "train", modality)  # type: ignore[arg-type]
        write_features(paths, "truth of scenes", ids.tolist(), vectors, identity)


def run(name: str, seed: int, out: Path, epochs: int, split: str) -> None:
    """Train one variant with one seed and evaluate it on a split, unless the results exist already."""
    folder = folder_of(out, name, seed)
    if (folder / f"{split}.json").is_file():
        return
    common = ["--config=demo.yaml", f"--data.root={out / 'shards'}", f"--trainer.default_root_dir={folder}"]
    common += ["--trainer.enable_progress_bar=false", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    if not (folder / "trained").is_file():
        stage1 = folder_of(out, STAGE1, seed) / "checkpoints" / "last.ckpt"
        chosen = [o.replace("STAGE1", str(stage1)).replace("TWICE", str(2 * epochs)) for o in VARIANTS[name]]
        settings = [f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}", f"--data.features={out / 'teacher'}"]
        settings += ["--data.val_split=null"]  # always use the last checkpoint, whatever its score on val
        itr_command("fit", *common, "--overwrite=true", *settings, *chosen)
        (folder / "trained").touch()
    itr_command("test", *common, "--ckpt_path=last", f"--data.test_split={split}")
    figures = json.loads((folder / "metrics.json").read_text()) | within_modalities(folder, out / "shards", split)
    (folder / f"{split}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{name}, seed {seed}: rsum {figures['test/rsum']:.2f} on {split}", flush=True)


@torch.no_grad()
def within_modalities(folder: Path, shards: Path, split: str) -> dict[str, float]:
    """Compare similarities within each modality with the true ones: mean Spearman correlation per query, times 100."""
    path = folder / "checkpoints" / "last.ckpt"
    module = RetrievalModule.load_from_checkpoint(path, weights_only=True).eval()
    truth = truth_vectors(shards, split)
    samples = [s for shard in find_split(shards, split).shards for s in read_tar(shard.place)]
    transform = EvaluationTransform(module.backbone.image_spec)
    images = module.encode_image(torch.stack([transform(decode(s.image, 10**7)) for s in samples]))
    texts = module.encode_text([caption for s in samples for caption in s.captions])
    found = {}
    for name, encoded in (("image", images), ("text", texts)):
        own = normalize(encoded.within, dim=-1)
        true = normalize(torch.from_numpy(truth[name][1]), dim=-1)
        found[f"{name}-{name}"] = 100 * spearman(own @ own.T, true @ true.T)
    return found


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the rank correlation of two similarity matrices [N, N], averaged over rows, without the diagonal."""
    keep = ~torch.eye(len(first), dtype=torch.bool)
    ranks = [m[keep].view(len(m), -1).argsort(dim=1).argsort(dim=1).float() for m in (first, second)]
    centred = [normalize(r - r.mean(dim=1, keepdim=True), dim=1) for r in ranks]
    return float((centred[0] * centred[1]).sum(dim=1).mean())


def methods_table(out: Path, seeds: list[int], split: str) -> str:
    """Return the mean and standard deviation over seeds as a Markdown table."""
    rows = []
    for name in ["baseline", *(name for name in VARIANTS if name != "baseline")]:
        runs = [json.loads((folder_of(out, name, seed) / f"{split}.json").read_text()) for seed in seeds]
        rows.append([name, *(spread([figures[key] for figures in runs]) for key in FIGURES.values())])
    return markdown(["method", *FIGURES], rows)


def main() -> None:
    """Run all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/methods_on_scenes"))
    parser.add_argument("--train", type=int, default=4000, help="number of training images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", help="split to evaluate on; use val to choose settings")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of parallel runs, with one thread each"
    )
    options = parser.parse_args()
    shards = options.out / "shards"
    if not (shards / "manifest.json").is_file():
        itr_command("prepare", "scenes", f"--out={shards}", f"--train={options.train}")
    write_teacher(shards, options.out / "teacher")
    rest = [name for name in VARIANTS if name != STAGE1]
    measured = partial(run, out=options.out, epochs=options.epochs, split=options.split)
    with workers(options.jobs) as pool:
        for names in ([STAGE1], rest):  # the second stage starts from the first stage's checkpoints
            jobs = [(name, seed) for seed in options.seeds for name in names]
            list(pool.map(measured, *zip(*jobs, strict=True)))
    text = methods_table(options.out, options.seeds, options.split)
    (options.out / f"{options.split}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
