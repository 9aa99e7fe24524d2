"""Provenance of metrics: model, data, versions and protocol, written next to them in a reproducible file."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from itr.files.digests import file_digest
from itr.files.writing import file_to_write, whole_file

LONGEST = 300  # characters of a setting that is stored in full


def about(protocol: str, model: Mapping[str, Any], data: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """The provenance that a metrics file stores; it has no date and no path, so equal runs write equal bytes.

    Args:
        protocol: what was measured and how, in a sentence or two.
        model: identity of the model, such as `checkpoint_identity`.
        data: identity of the data: hash and counts.
        settings: other settings that affect the metrics, such as the precision.
    """
    return {"protocol": protocol, "model": dict(model), "data": dict(data), **settings, "versions": versions()}


def measured(data: Mapping[str, Any], images: int, captions: int, samples: int) -> dict[str, Any]:
    """The identity of the data with the counts of what was measured, which may be less than the split.

    Args:
        data: identity of the split, with its counts of `images` and `captions`; or nothing, if it is unknown.
        images: number of images that were ranked.
        captions: number of captions that were ranked.
        samples: number of samples that were read. If it is more than `images`, some had the same image.

    Returns:
        `data` with the measured `images` and `captions`; `merged_samples` if some had the same image; and `in_split`
        with the counts of the split, if not all of it was measured.
    """
    found = {**data, "images": images, "captions": captions}
    if samples > images:
        found["merged_samples"] = samples - images
    if data.keys() >= {"images", "captions"} and (samples, captions) != (data["images"], data["captions"]):
        found["in_split"] = {"images": data["images"], "captions": data["captions"]}
    return found


def measured_notes(data: Mapping[str, Any]) -> list[str]:
    """What a reader of the metrics should know about the data of `measured`, as sentences."""
    notes = []
    if merged := data.get("merged_samples"):
        notes.append(
            f"{merged:,} samples have an image equal to that of another sample, and were merged with it: "
            f"{data['images']:,} images with {data['captions']:,} captions were measured"
        )
    if tied := data.get("equal_images"):
        notes.append(
            f"{tied:,} images are equal to another one; the protocol keeps them, they tie, and ties count as wrong"
        )
    if whole := data.get("in_split"):
        read = data["images"] + data.get("merged_samples", 0)
        notes.append(
            f"only a part of the split was measured: {read:,} of {whole['images']:,} samples, and "
            f"{data['captions']:,} of {whole['captions']:,} captions"
        )
    return notes


def shortened(value: Any) -> Any:
    """Settings with every long text replaced by its hash, such as the tokenizer stored in a checkpoint."""
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    if isinstance(value, str) and len(value) > LONGEST:
        return f"blake2b:{hashlib.blake2b(value.encode(), digest_size=16).hexdigest()}"
    return value


def versions() -> dict[str, str]:
    """The versions of itr, torch, transformers and Python."""
    found = {name: _version(name) for name in ("itr", "transformers")}
    return {**found, "torch": str(torch.__version__), "python": platform.python_version()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def checkpoint_identity(path: Path) -> dict[str, str]:
    """File name and hash of a checkpoint."""
    return {"checkpoint": path.name, "blake2b": file_digest(path)}


def encoder_name(name: str) -> str:
    """The name of an encoder; for a path, only its last part."""
    kind, colon, rest = name.rpartition(":")
    path = Path(rest).expanduser()
    return f"{kind}{colon}{path.resolve().name}" if path.exists() else name


def figures_file(out: str) -> Path:
    """The path of a metrics file, checked before anything is computed.

    Raises:
        UserError: the name does not end in .json, or the file could not be created.
    """
    return file_to_write(out, ".json")


def write_figures(target: Path, figures: Mapping[str, float], provenance: Mapping[str, Any]) -> None:
    """Write metrics as a flat JSON object with their provenance under `about`, atomically."""
    text = json.dumps({**figures, "about": provenance}, indent=1, allow_nan=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        file.write(f"{text}\n".encode())


def figures_table(figures: Mapping[str, float]) -> str:
    """Metrics as aligned lines of text."""
    width = max(map(len, figures))
    return "\n".join(f"{name:{width}} {value:8.2f}" for name, value in figures.items())
