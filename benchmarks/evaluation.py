"""Compares exact ranks of a COCO 5K test set with a bare matrix product and other implementations, on the same data.

The argsort loop sorts the row of each image and the column of each caption one by one with numpy, as VSE++ and its
successors do. torchmetrics is timed on some queries and scaled up. Everything else runs on a GPU if there is one.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import retrieval_hit_rate

from itr.evaluation.cosine import Cosine
from itr.evaluation.ranks import Matches, rank
from measuring import Line, arguments, device, seconds, side_by_side, write


def embeddings(num_images: int, num_texts: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random image [N, D] and caption [M, D] embeddings with typical ranks, and each caption's image [M]."""
    generator = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(num_images, width, generator=generator), dim=-1)
    own = torch.arange(num_texts) * num_images // num_texts
    text = 0.08 * image[own] + normalize(torch.randn(num_texts, width, generator=generator), dim=-1)
    return image.to(device()), normalize(text, dim=-1).to(device()), own.to(device())


def argsort_loop(scores: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks in both directions by sorting one query after another."""
    image_to_text = [np.flatnonzero(own[np.argsort(row)[::-1]] == i)[0] for i, row in enumerate(scores)]
    text_to_image = [np.flatnonzero(np.argsort(column)[::-1] == i)[0] for column, i in zip(scores.T, own, strict=True)]
    return np.array(image_to_text), np.array(text_to_image)


def torchmetrics_hits(scores: torch.Tensor, own: torch.Tensor, queries: int) -> float:
    """Return the seconds for R@10 of all queries in both directions, extrapolated from some of them."""
    rows = torch.arange(len(scores), device=scores.device)
    images = seconds(lambda: [retrieval_hit_rate(scores[i], own == i, top_k=10) for i in range(queries)])
    texts = seconds(lambda: [retrieval_hit_rate(scores[:, c], rows == own[c], top_k=10) for c in range(queries)])
    return (images * len(scores) + texts * len(own)) / queries


def coco_5k(num_images: int, width: int, rounds: int) -> list[Line]:
    """Measure images and five times as many captions, in both directions."""
    image, text, own = embeddings(num_images, 5 * num_images, width)
    alternatives: dict[str, Callable[[], object]] = {
        "product": lambda: image @ text.T,
        "itr": lambda: rank(Cosine(image, text), Matches.own(own, num_images)),
        "argsort": lambda: argsort_loop((image @ text.T).cpu().numpy(), own.cpu().numpy()),
    }
    found = side_by_side(alternatives, rounds)
    ours, product = found.median("itr"), found.median("product")
    hits = torchmetrics_hits(image @ text.T, own, min(50, num_images))
    limit = {"limit": product, "limit_by": "the matrix product alone, float32, measured in the same rounds"}
    line = partial(Line, unit="s", ours=ours, **limit)  # type: ignore[arg-type]
    return [
        line("all ranks", beside="matrix product alone", theirs=product, ratio=found.ratio("itr", "product")),
        line("all ranks", beside="matrix product and a loop of argsort", theirs=found.median("argsort"),
             ratio=found.ratio("itr", "argsort"), at_most=1.0),
        line("all ranks", beside="torchmetrics, R@10 alone, scaled up", theirs=hits, ratio=ours / hits, at_most=1.0),
    ]  # fmt: skip


def large(num_images: int, num_texts: int, width: int, share: int) -> list[Line]:
    """Measure every image of a large gallery against 1/share of the captions, and scale up; also the memory."""
    image, text, own = embeddings(num_images, num_texts // share, width)
    part = min(10240, num_images)
    rank(Cosine(image[:part], text[:8]), Matches.own(own[:8] % part, part))  # initialises libraries
    products = seconds(lambda: [image[i : i + 1024] @ text.T for i in range(0, part, 1024)])
    bare = share * products * num_images / part
    ours = share * seconds(lambda: rank(Cosine(image, text), Matches.own(own, num_images)))
    peak = peak_memory()
    copies = 1 if device() == "cuda" else 2  # of captions: normalised once on a CPU, tile by tile on a GPU
    rest = (num_texts - num_texts // share) * width * 4 * copies / 2**30
    gallery = f"{num_images:,} images and {num_texts:,} captions"
    scaled = f"Measured on {1 / share:.0%} of the captions and scaled up."
    return [
        Line(f"{gallery}: all ranks", "s", ours, "matrix product alone", bare, ratio=ours / bare, remark=scaled),
        Line(f"{gallery}: memory", "GiB", peak + rest,
             remark=f"{peak:.2f} GiB at the peak of this part; the memory of the other captions is calculated."),
    ]  # fmt: skip


def peak_memory() -> float:
    """Return the peak memory of this process, or of the GPU's allocator, in GiB."""
    if device() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run all measurements and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--share", type=int, default=50, help="score one in this many captions of the large gallery")
    options = parser.parse_args()
    small = 100 if options.quick else 1
    # Run the large gallery first, because the peak memory of a process never falls.
    gallery = large(100_000 // small, 500_000 // small, 512, options.share)
    lines = [*coco_5k(5000 // small, options.width, options.rounds), *gallery]
    settings = {"images": 5000 // small, "captions": 25_000 // small, "width": options.width, "rounds": options.rounds}
    write(options.out, "evaluation", lines, settings, {})


if __name__ == "__main__":
    main()
