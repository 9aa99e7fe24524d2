"""Exact ranks of a COCO 5K test set beside the bare matrix product and the ways of others, on the same numbers.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation.json

In every round each way runs once, in turn; the figures are medians. `argsort loop` sorts the row of each image and each
column of each caption, one by one, as VSE++ and its successors do. torchmetrics is timed on some queries and scaled up.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import retrieval_hit_rate

from itr.evaluation.cosine import Cosine
from itr.evaluation.ranks import Matches, rank


def embeddings(num_images: int, num_texts: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Made-up images [N, D] and captions [M, D] with ranks as of a middling model, and each caption's image [M]."""
    generator = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(num_images, width, generator=generator), dim=-1)
    own = torch.arange(num_texts) * num_images // num_texts
    text = 0.08 * image[own] + normalize(torch.randn(num_texts, width, generator=generator), dim=-1)
    return image, normalize(text, dim=-1), own


def argsort_loop(scores: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of both directions by sorting one query after another."""
    image_to_text = [np.flatnonzero(own[np.argsort(row)[::-1]] == i)[0] for i, row in enumerate(scores)]
    text_to_image = [np.flatnonzero(np.argsort(column)[::-1] == i)[0] for column, i in zip(scores.T, own, strict=True)]
    return np.array(image_to_text), np.array(text_to_image)


def torchmetrics_hits(scores: torch.Tensor, own: torch.Tensor, queries: int) -> float:
    """Seconds that R@10 of all queries of both directions would take, from some of each."""
    started = time.perf_counter()
    for i in range(queries):
        retrieval_hit_rate(scores[i], own == i, top_k=10)
    images = (time.perf_counter() - started) / queries
    started = time.perf_counter()
    rows = torch.arange(len(scores))
    for c in range(queries):
        retrieval_hit_rate(scores[:, c], rows == own[c], top_k=10)
    return images * len(scores) + (time.perf_counter() - started) / queries * len(own)


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def coco_5k(rounds: int, width: int) -> dict[str, float]:
    """5,000 images and 25,000 captions, both directions."""
    image, text, own = embeddings(5000, 25000, width)
    scores = image @ text.T
    ways: dict[str, Callable[[], object]] = {
        "matrix product": lambda: image @ text.T,
        "itr": lambda: rank(Cosine(image, text), Matches.own(own, 5000)),
        "argsort loop": lambda: argsort_loop((image @ text.T).numpy(), own.numpy()),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way))
    found = {f"{name}, s": statistics.median(values) for name, values in times.items()}
    ratios = [ours / bare for ours, bare in zip(times["itr"], times["matrix product"], strict=True)]
    found["itr over matrix product"] = statistics.median(ratios)
    found["torchmetrics R@10 alone, s (scaled up)"] = torchmetrics_hits(scores, own, 50)
    return found


def large(width: int, num_images: int, num_texts: int, share: int) -> dict[str, float]:
    """A slice of a large gallery: every image against 1/share of the captions, then scaled up; and the memory."""
    image, text, own = embeddings(num_images, num_texts // share, width)
    bare = share * seconds(lambda: [image[i : i + 1024] @ text.T for i in range(0, 10240, 1024)]) * num_images / 10240
    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ours = share * seconds(lambda: rank(Cosine(image, text), Matches.own(own, num_images)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rest = (num_texts - num_texts // share) * width * 4 * 2 / 2**30  # the other captions and their normalised copy
    return {
        "matrix product, s (scaled up)": bare,
        "itr, s (scaled up)": ours,
        "peak of the slice before ranking, GiB": first,
        "peak of the slice, GiB": peak,
        "peak of the whole, GiB (slice and the other captions)": peak + rest,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluation.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--share", type=int, default=50, help="one of so many captions of the large gallery is scored")
    options = parser.parse_args()
    # The large gallery first: the highest memory of a process only ever grows.
    big = large(512, 100_000, 500_000, options.share)
    results = {
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
        f"5,000 x 25,000, width {options.width}": coco_5k(options.rounds, options.width),
        "100,000 x 500,000, width 512": big,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
