"""Hashes that identify files, sets of files and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def file_digest(path: Path) -> str:
    """A blake2b hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def combined_digest(digests: Mapping[str, str]) -> str:
    """One hash of many files, given as the hash of each by its name; their order does not matter."""
    lines = "".join(f"{digests[name]} {name}\n" for name in sorted(digests))
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def weights_identity(weights: Mapping[str, Tensor]) -> str:
    """A hash of the names and values of weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_mark(content: bytes) -> int:
    """A 63-bit hash of an image file or a text, by which samples with the same id are known to be the same."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
