"""`itr embed`: the embeddings that a checkpoint gives to shards, to a folder of pictures, or to lines of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from itr.checkpoints import open_checkpoint
from itr.data.datamodule import ShardData
from itr.data.images import BadImageError, EvaluationTransform, decode
from itr.data.schema import IMAGE_TYPES
from itr.distributed import choose_device
from itr.errors import UserError
from itr.module import RetrievalModule
from itr.parsing import run_verb
from itr.training_cli import quieten
from itr.types import Encoded


def embed(
    ckpt_path: str,
    out: str,
    data: str | None = None,
    split: str = "test",
    images: str | None = None,
    texts: str | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    device: str = "auto",
    precision: Literal["32", "bf16-mixed"] = "32",
    cache: str | None = None,
) -> None:
    """Embed shards, a folder of pictures, or lines of text.

    The file holds `image` [N, D] with `image_id`, and `text` [M, D] with `caption_id` and, for shards,
    `caption_image_id`; for a folder also `image_name`, for lines of text `caption`. Where a method gives embeddings of
    their own for search within a modality, they are `image_unimodal` and `text_unimodal`. Nothing is normalised.

    Args:
        ckpt_path: a checkpoint of `itr fit` or `itr convert`.
        out: file to write, FILE.npz.
        data: folder or URL of shards, or a list of tars such as 'tars/*.tar'; give this, or images and texts.
        split: which of its splits.
        images: folder of pictures, searched with its subfolders.
        texts: file with one caption a line.
        batch_size: pictures or captions at a time.
        num_workers: processes that decode.
        device: cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
        precision: of the towers.
        cache: folder that keeps shards which come from a URL.
    """
    target = Path(out).expanduser()
    if target.suffix != ".npz":
        raise UserError(f"--out is {out}; give a name that ends in .npz")
    if (data is None) == (images is None and texts is None):
        raise UserError("give --data SHARDS, or --images FOLDER and --texts FILE, or one of these two")
    module, where = open_checkpoint(ckpt_path), torch.device(choose_device(device))
    if data is not None:
        shards = ShardData(data, eval_batch_size=batch_size, num_workers=num_workers, predict_split=split, cache=cache)
        arrays = embed_shards(module, shards, where, precision)
    else:
        arrays = {}
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=precision != "32"):
            module.to(where)
            if images is not None:
                arrays |= embed_folder(module, Path(images).expanduser(), batch_size, num_workers)
            if texts is not None:
                arrays |= embed_lines(module, Path(texts).expanduser(), batch_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, allow_pickle=False, **arrays)
    shapes = ", ".join(f"{len(value):,} {name}" for name, value in arrays.items() if name in ("image", "text"))
    print(f"embedded {shapes}: {target}")


def embed_shards(
    module: RetrievalModule, data: ShardData, device: torch.device, precision: str
) -> dict[str, np.ndarray]:
    """Every picture and caption of a split once."""
    quieten()
    devices = [device.index] if device.index is not None else 1
    where: dict[str, Any] = {"accelerator": device.type, "devices": devices, "precision": precision}
    trainer = pl.Trainer(**where, logger=False, enable_model_summary=False, enable_checkpointing=False)
    trainer.predict(module, data, return_predictions=False)
    return module.last_gallery.arrays()


class PictureFiles(Dataset[tuple[int, Tensor | str]]):
    """Pictures of a folder, as the backbone takes them; the reason as text where one can't be decoded."""

    def __init__(self, paths: list[Path], transform: EvaluationTransform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.transform(decode(self.paths[index].read_bytes(), 10**9))
        except (BadImageError, OSError) as error:
            return index, str(error)


def embed_folder(module: RetrievalModule, folder: Path, batch_size: int, num_workers: int) -> dict[str, np.ndarray]:
    """The pictures below a folder, in the order of their names; what can't be decoded is told and left out."""
    if not folder.is_dir():
        raise UserError(f"--images: there is no folder {folder}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_TYPES)
    files = PictureFiles(paths, EvaluationTransform(module.backbone.image_spec))
    loader = DataLoader(files, batch_size, num_workers=min(num_workers, len(paths)), collate_fn=list)
    kept: list[int] = []
    parts: list[Encoded] = []
    for rows in tqdm(loader, "pictures", unit=" batches", disable=None):
        good = [(index, picture) for index, picture in rows if isinstance(picture, Tensor)]
        for index, reason in rows:
            if isinstance(reason, str):
                tqdm.write(f"left out {paths[index]}: {reason}")
        if good:
            kept += [index for index, _ in good]
            pictures = torch.stack([picture for _, picture in good]).to(module.device)
            parts.append(module.encode_image(pictures).without_tokens().map(Tensor.cpu))
    if not parts:
        raise UserError(f"{folder} holds no picture that can be decoded ({', '.join(IMAGE_TYPES)})")
    names = np.array([str(paths[index].relative_to(folder)) for index in kept])
    return {**Encoded.concatenate(parts).arrays("image"), "image_id": np.array(kept), "image_name": names}


def embed_lines(module: RetrievalModule, file: Path, batch_size: int) -> dict[str, np.ndarray]:
    """The captions of a file, one a line; empty lines are left out."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts: {file} can't be read: {error}") from None
    numbers = [number for number, line in enumerate(lines) if line]
    if not numbers:
        raise UserError(f"--texts: {file} holds no caption")

    captions = [lines[number] for number in numbers]
    parts = []
    for start in tqdm(range(0, len(captions), batch_size), "captions", unit=" batches", disable=None):
        encoded = module.encode_text(captions[start : start + batch_size])
        parts.append(encoded.without_tokens().map(Tensor.cpu))
    arrays = Encoded.concatenate(parts).arrays("text")
    return {**arrays, "caption_id": np.array(numbers), "caption": np.array(captions)}


def main(arguments: list[str]) -> None:
    """Parse the command line and embed."""
    run_verb(arguments, embed)
