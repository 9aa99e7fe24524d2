"""Calculates the cost of an epoch: operations, network traffic, and the CPU cores needed for decoding.

Only two inputs are measured: the share of a card's rate, if there is a result, and the images that a core decodes per
second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import read

CARD, RATE, BANDWIDTH = "H200", 989e12, 4.8e12  # dense bf16 operations per second, bytes of memory per second
TF32 = RATE / 2
ASSUMED_SHARE = 0.4  # of the rate, if it has not been measured
LINK = 400e9 / 8  # bytes per second of each GPU
PASSES = 48  # InfoNCE's reads and writes of each score, forward and backward, counted by `loss_counts.py`
MAX_PER_GPU, MAX_TOTAL = 1024, 32_768  # pairs in a step
GPUS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Model:
    """A CLIP of open_clip.

    Attributes:
        name: name in tables.
        image: operations of the forward pass of an image.
        text: operations of the forward pass of a caption with 77 tokens.
        parameters: number of parameters in both towers.
        width: width of the embeddings.
    """

    name: str
    image: float
    text: float
    parameters: float
    width: int


# Operations are from open_clip's docs/model_profile.csv.
MODELS = (
    Model("ViT-B/32", 8.82e9, 5.96e9, 151.3e6, 512),
    Model("ViT-B/16", 35.1e9, 5.96e9, 149.6e6, 512),
    Model("ViT-L/14", 162e9, 13.3e9, 427.6e6, 768),
)


@dataclass(frozen=True)
class Epoch:
    """The data of one epoch.

    Attributes:
        name: name in tables.
        pairs: number of image-caption pairs.
        captions: pairs per encoded image.
    """

    name: str
    pairs: int
    captions: int = 1


EPOCHS = (
    Epoch("COCO, one pair per caption", 566_435),
    Epoch("COCO, one image with 5 captions", 566_435, 5),
    Epoch("400 million pairs", 400_000_000),
)


@dataclass(frozen=True)
class Step:
    """Seconds of a step on each GPU.

    Attributes:
        pairs: number of pairs per GPU.
        towers: forward and backward pass.
        loss: loss of the GPU's own rows against all.
        network: gathering embeddings, returning their gradients and averaging all gradients, without overlap.
    """

    pairs: int
    towers: float
    loss: float
    network: float

    @property
    def seconds(self) -> float:
        """Return the seconds of the whole step."""
        return self.towers + self.loss + self.network


def step(model: Model, captions: int, gpus: int, share: float) -> Step:
    """Calculate the time of a step.

    Args:
        model: the model to train.
        captions: pairs per encoded image.
        gpus: number of GPUs.
        share: share of the card's rate that the towers reach.
    """
    pairs = min(MAX_PER_GPU, MAX_TOTAL // gpus)
    towers = pairs * 3 * (model.image / captions + model.text) / (RATE * share)
    scores = pairs * pairs * gpus * (2 if gpus > 1 else 1)  # a single GPU uses one matrix for both directions
    loss = 3 * 2 * scores * model.width / (TF32 * ASSUMED_SHARE) + PASSES * 4 * scores / BANDWIDTH
    embeddings = 2 * 4 * pairs * model.width  # bytes, images and captions
    gradients = 2 * (gpus - 1) / gpus * 4 * model.parameters
    network = (3 * (gpus - 1) * embeddings + gradients) / LINK  # gathered once; the sum on the way back counts twice
    return Step(pairs, towers, loss, network)


def row(model: Model, epoch: Epoch, gpus: int, share: float, images: float) -> dict[str, Any]:
    """Return an epoch as a row of the table; `images` is the number that a core decodes per second."""
    one = step(model, epoch.captions, gpus, share)
    seconds = epoch.pairs / (one.pairs * gpus) * one.seconds
    return {
        "epoch": epoch.name,
        "model": model.name,
        "GPUs": gpus,
        "pairs per GPU and step": one.pairs,
        "hours": seconds / 3600,
        "GPU-hours": gpus * seconds / 3600,
        "towers, %": 100 * one.towers / one.seconds,
        "loss, %": 100 * one.loss / one.seconds,
        "network, %": 100 * one.network / one.seconds,
        "cores per GPU": one.pairs / epoch.captions / one.seconds / images,
    }


def shares(results: Path) -> dict[str, float]:
    """Return the share of the card's bf16 rate by model, for models that `training_step.py` measured on a GPU.

    It is read from lines that name the model and bf16 and have the target `ASSUMED_SHARE`.
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


def epoch_tables(results: Path, images: float) -> dict[str, Any]:
    """Return the assumptions as text, and the table of calculated epochs.

    Args:
        results: folder with the results measured on a GPU.
        images: number of images that a core decodes per second.
    """
    known = shares(results)
    measured = ", ".join(f"{name} {100 * share:.0f} %" for name, share in known.items())
    reached = f"measured on a GPU: {measured}; otherwise " if known else "assumed, since no GPU result is available: "
    assumptions = (
        f"one {CARD} performs {RATE / 1e12:.0f} TFLOP/s in dense bf16 and has {BANDWIDTH / 1e12:.1f} TB/s. The share "
        f"of that rate that the towers reach is {reached}{100 * ASSUMED_SHARE:.0f} %. Training costs three forward "
        "passes of 8.82, 35.1 or 162 GFLOP per image and 5.96, 5.96 or 13.3 GFLOP per caption of 77 tokens "
        f"(open_clip's profiles). A step has {MAX_PER_GPU:,} pairs on each GPU and at most {MAX_TOTAL:,} on all. The "
        "loss uses each process's own rows (`model.large_batch.local_loss`), in TF32 at "
        f"{100 * ASSUMED_SHARE:.0f} % of its rate, and passes {PASSES} times over its scores. Every GPU has a link of "
        f"{8 * LINK / 1e9:.0f} Gbit/s. Its traffic (float32 gradients of all weights, embeddings and the gradients "
        "returned for them, around a ring) does not overlap with anything. A core decodes and crops "
        f"{images:,.0f} images per second from shards with a short side of 256, as measured in this run. Rounding to "
        "whole steps, evaluation and start-up are ignored"
    )
    rows = [
        row(model, epoch, gpus, known.get(model.name, ASSUMED_SHARE), images)
        for epoch in EPOCHS
        for model in MODELS
        for gpus in GPUS
    ]
    return {"Assumptions of the calculated epochs": assumptions + ".", "Cost of an epoch, calculated": rows}
