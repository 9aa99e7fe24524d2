"""What an epoch costs by calculation: operations, bytes of the network, and the processor cores that must decode.

Nothing here is measured but the share of a card's rate, where there is a result of it, and the images that a core
decodes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import read

CARD, RATE, BANDWIDTH = "H200", 989e12, 4.8e12  # dense bf16 operations and bytes of memory a second
TF32 = RATE / 2
ASSUMED_SHARE = 0.4  # of the rate, where no result tells
LINK = 400e9 / 8  # bytes a second of each GPU
PASSES = 48  # times that InfoNCE reads or writes each of its scores, forward and backward, by `loss_counts.py`
MOST_EACH, MOST_ALL = 1024, 32_768  # pairs of a GPU and of all in a step
GPUS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Model:
    """A CLIP of open_clip.

    Attributes:
        name: as in tables.
        image: operations of an image's forward pass.
        text: operations of a caption's, of 77 tokens.
        parameters: of both towers.
        width: of the embeddings.
    """

    name: str
    image: float
    text: float
    parameters: float
    width: int


# Operations by open_clip's docs/model_profile.csv.
MODELS = (
    Model("ViT-B/32", 8.82e9, 5.96e9, 151.3e6, 512),
    Model("ViT-B/16", 35.1e9, 5.96e9, 149.6e6, 512),
    Model("ViT-L/14", 162e9, 13.3e9, 427.6e6, 768),
)


@dataclass(frozen=True)
class Epoch:
    """What is gone through once.

    Attributes:
        name: as in tables.
        pairs: of an image and a caption.
        captions: pairs for one encoding of their image.
    """

    name: str
    pairs: int
    captions: int = 1


EPOCHS = (
    Epoch("COCO, each caption a pair", 566_435),
    Epoch("COCO, an image with 5 captions", 566_435, 5),
    Epoch("400 million pairs", 400_000_000),
)


@dataclass(frozen=True)
class Step:
    """Seconds of a step on each GPU.

    Attributes:
        pairs: of each GPU.
        towers: forward and backward.
        loss: of the own rows against all.
        network: gathered embeddings and their gradients, and the mean of all gradients; hidden behind nothing.
    """

    pairs: int
    towers: float
    loss: float
    network: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.towers + self.loss + self.network


def step(model: Model, captions: int, gpus: int, share: float) -> Step:
    """Calculate a step.

    Args:
        model: what is trained.
        captions: pairs for one encoding of their image.
        gpus: that train together.
        share: of the card's rate that the towers reach.
    """
    pairs = min(MOST_EACH, MOST_ALL // gpus)
    towers = pairs * 3 * (model.image / captions + model.text) / (RATE * share)
    scores = pairs * pairs * gpus * (2 if gpus > 1 else 1)  # one matrix serves both ways where all rows are one's own
    loss = 3 * 2 * scores * model.width / (TF32 * ASSUMED_SHARE) + PASSES * 4 * scores / BANDWIDTH
    embeddings = 2 * 4 * pairs * model.width  # bytes, images and captions
    gradients = 2 * (gpus - 1) / gpus * 4 * model.parameters
    network = (3 * (gpus - 1) * embeddings + gradients) / LINK  # there once, and back by a sum, which is twice
    return Step(pairs, towers, loss, network)


def row(model: Model, epoch: Epoch, gpus: int, share: float, images: float) -> dict[str, Any]:
    """An epoch as a row of the table; `images` is what a core decodes a second."""
    one = step(model, epoch.captions, gpus, share)
    seconds = epoch.pairs / (one.pairs * gpus) * one.seconds
    return {
        "epoch": epoch.name,
        "model": model.name,
        "GPUs": gpus,
        "pairs of each in a step": one.pairs,
        "hours": seconds / 3600,
        "GPU-hours": gpus * seconds / 3600,
        "towers, %": 100 * one.towers / one.seconds,
        "loss, %": 100 * one.loss / one.seconds,
        "network, %": 100 * one.network / one.seconds,
        "cores a GPU": one.pairs / epoch.captions / one.seconds / images,
    }


def shares(results: Path) -> dict[str, float]:
    """The share of the card's bf16 rate by model, where `training_step.py` has measured it on a GPU.

    It is taken from lines that name the model and bf16 and have to reach `ASSUMED_SHARE`.
    """
    path = results / "training_step.json"
    lines = read(path)[1] if path.exists() else []
    found = {}
    for model in MODELS:
        for line in lines:
            value = line.ours if line.ratio is None else line.ratio
            named = model.name in line.what and "bf16" in line.what
            if named and value is not None and line.at_least == ASSUMED_SHARE:
                found[model.name] = value
    return found


def tables(results: Path, images: float) -> dict[str, Any]:
    """The assumptions in words, and the table of calculated epochs.

    Args:
        results: folder with what was measured on a GPU.
        images: that a core decodes a second.
    """
    known = shares(results)
    measured = ", ".join(f"{name} {100 * share:.0f} %" for name, share in known.items())
    reached = f"measured on a GPU: {measured}; else " if known else "no result of a GPU tells, so it is assumed: "
    said = (
        f"one {CARD} makes {RATE / 1e12:.0f} TFLOP/s of dense bf16 and {BANDWIDTH / 1e12:.1f} TB/s; of that rate the "
        f"towers reach ({reached}{100 * ASSUMED_SHARE:.0f} %). Training is three forward passes of 8.82, 35.1 or 162 "
        "GFLOP an image and 5.96, 5.96 or 13.3 GFLOP a caption of 77 tokens (open_clip's profiles). A step has "
        f"{MOST_EACH:,} pairs on each GPU and at most {MOST_ALL:,} on all. The loss is that of a process's own rows "
        f"(`model.large_batch.local_loss`), in TF32 at {100 * ASSUMED_SHARE:.0f} % of its rate, and passes {PASSES} "
        f"times over its scores. Every GPU has a link of {8 * LINK / 1e9:.0f} Gbit/s, and what it sends (float32 "
        "gradients of all weights, embeddings there and their gradients back, around a ring) hides behind nothing. A "
        f"core decodes and crops {images:,.0f} images a second of shards with a short side of 256, as measured in "
        "this run; a whole number of steps, evaluation and start-up are left out"
    )
    rows = [
        row(model, epoch, gpus, known.get(model.name, ASSUMED_SHARE), images)
        for epoch in EPOCHS
        for model in MODELS
        for gpus in GPUS
    ]
    return {"Assumptions of the calculated epochs": said + ".", "Cost of an epoch, calculated": rows}
