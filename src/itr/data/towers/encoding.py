"""The pass that runs a frozen tower over all images or captions of a split, shared by the processes of a run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from itr.backbones.base import Backbone, Side
from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.reader import Chunk, ChunkReader, load_chunks
from itr.data.features.sharing import Share, store_chunks
from itr.data.features.writer import FeatureWriter
from itr.data.shards.patterns import names_tars
from itr.data.shards.remote import is_url
from itr.data.shards.schema import Shard, Split, data_identity
from itr.data.shards.tars import read_tar
from itr.data.towers.choice import Choice
from itr.data.towers.outputs import TowerOutputs
from itr.errors import UserError
from itr.files.digests import content_mark, weights_identity
from itr.images.transforms import EvaluationTransform
from itr.types import Tokens

log = logging.getLogger(__name__)
CHUNK = 64  # images or captions that are read and written together
IMAGES_ON_CPU = 16  # that the tower takes at once there: 64 take 1 GB more, and 10 % less time
COLUMNS = ("input", "file")
TOWERS: dict[Side, str] = {"image": "frozen vision tower", "text": "frozen text tower"}
NAMES = {"weights": "tower", "settings": "preprocessing", "data": "data set", "dtype": "precision"}


@dataclass(frozen=True)
class Decoding:
    """How the samples of a split are read; see `ShardData`."""

    num_workers: int
    max_pixels: int
    max_skipped: int


@dataclass(frozen=True)
class Job:
    """What to run over a split.

    Attributes:
        backbone: the towers, on their device.
        folder: where the outputs of all splits are.
        name: name of the split.
        split: its shards.
        decoding: how they are read.
        trainer: the processes that share the work.
    """

    backbone: Backbone
    folder: Path
    name: str
    split: Split
    decoding: Decoding
    trainer: pl.Trainer


def towers_folder(root: str, run: str) -> Path:
    """The folder for outputs: beside the shards, or in the run folder if these are remote or a list of tars."""
    return Path(run if is_url(root) or names_tars(root) else root).expanduser() / ".towers"


def keep_outputs(choice: Choice, job: Job) -> dict[Side, TowerOutputs]:
    """The outputs of frozen towers for a split, computed now if they do not exist; an unfinished pass is continued.

    Raises:
        UserError: the files are those of another tower, preprocessing or data set.
    """
    return {side: _keep_side(job, side, choice.dtype) for side in choice.sides}


def _keep_side(job: Job, side: Side, dtype: str) -> TowerOutputs:
    paths = FeaturePaths(job.folder, job.name, side)
    with _evaluating(job.backbone):
        header, lengths = _header(job, paths, dtype)
        writer = FeatureWriter(paths, header, CHUNK, False, lengths, COLUMNS, "set model.backbone.cache to float32")
        if not writer.complete:
            _run(job, side, writer)
    job.trainer.strategy.barrier()
    return TowerOutputs(paths, header)


def _run(job: Job, side: Side, writer: FeatureWriter) -> None:
    share = Share(job.trainer.global_rank, job.trainer.world_size)
    if job.trainer.is_global_zero:
        what = f"{writer.items:,} {'images' if side == 'image' else 'captions'} of {job.name}"
        log.info("the %s runs once over %s; training then reads %s", TOWERS[side], what, writer.paths.folder)
    todo = writer.todo(share.chunks(writer.num_chunks))
    transform = EvaluationTransform(job.backbone.image_spec) if side == "image" else None
    tokenizer = job.backbone.tokenizer
    reader = ChunkReader(job.split, side, CHUNK, todo, transform, job.decoding.max_pixels, None, tokenizer)
    chunks = load_chunks(reader, job.decoding.num_workers, job.decoding.max_skipped)
    store_chunks(writer, reader, _encoded(job.backbone, side, chunks), _writing(writer), f"{job.name}, {TOWERS[side]}")


def _writing(writer: FeatureWriter) -> Callable[[Chunk, Tensor], None]:
    """Writes the output of a chunk: a row an image, a caption or a word."""

    def write(chunk: Chunk, output: Tensor) -> None:
        inputs = chunk.inputs
        if isinstance(inputs, Tokens):
            seen = [ids[mask] for ids, mask in zip(inputs.ids, inputs.mask, strict=True)]
            rows = output if writer.starts is None else output[inputs.mask]
        else:
            seen, rows = list(inputs), output.flatten(1)
        hashes = [content_mark(value.numpy().tobytes()) for value in seen]
        writer.write(chunk.number, chunk.ids, rows, chunk.marks, chunk.bad, input=hashes, file=chunk.marks)

    return write


def _encoded(backbone: Backbone, side: Side, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Tensor]]:
    """Chunks with the tower's output on the CPU, float32."""
    device = backbone.pixel_mean.device
    for chunk in chunks:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            output = _output(backbone, side, chunk.inputs.to(device))
        yield chunk, output.float().cpu()


def _output(backbone: Backbone, side: Side, inputs: Any) -> Tensor:
    if side == "text":
        return backbone.text_output(inputs)
    size = IMAGES_ON_CPU if inputs.device.type == "cpu" else len(inputs)
    return torch.cat([backbone.image_output(part) for part in inputs.split(size)])


def _header(job: Job, paths: FeaturePaths, dtype: str) -> tuple[Header, np.ndarray | None]:
    """The header of the outputs, and the number of words of each caption if every word has a row."""
    backbone, side = job.backbone, paths.modality
    assert side != "dense"
    shape = _output_shape(backbone, side)
    words, patches = side == "text" and len(shape) == 3, shape[1] if side == "image" and len(shape) == 3 else 0
    settings = {"preprocessing": _preprocessing(backbone, side), "patches": patches, "words": words}
    rows = job.split.images if side == "image" else job.split.captions
    weights, data = weights_identity(backbone.tower_weights(side)), data_identity(job.split)
    tower = f"the {TOWERS[side]} of {type(backbone).__name__}"
    header = Header(tower, side, shape[-1] * max(patches, 1), rows, data, settings, weights, dtype)
    _refuse_others(paths, header)
    if not words:
        return header, None
    if paths.header.is_file():  # of the same captions and tokenizer, so their words need not be counted again
        return replace(header, rows=Header.read(paths.header).rows), np.zeros(0, dtype=np.int64)
    lengths = np.concatenate([_lengths(backbone, shard) for shard in job.split.shards])
    return replace(header, rows=int(lengths.sum())), lengths


def _lengths(backbone: Backbone, shard: Shard) -> np.ndarray:
    """The number of tokens of each caption of a shard."""
    captions = [caption for sample in read_tar(shard.place, images=False) for caption in sample.captions]
    return backbone.tokenizer(captions).mask.sum(dim=1).numpy() if captions else np.zeros(0, dtype=np.int64)


def _output_shape(backbone: Backbone, side: Side) -> tuple[int, ...]:
    device, size = backbone.pixel_mean.device, backbone.image_spec.size
    with torch.inference_mode():
        if side == "text":
            return tuple(backbone.text_output(backbone.tokenizer(["a caption"]).to(device)).shape)
        return tuple(backbone.image_output(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)).shape)


def _preprocessing(backbone: Backbone, side: Side) -> str:
    """A hash of what turns an image or a caption into the tower's input."""
    if side == "image":
        text = json.dumps(asdict(backbone.image_spec), sort_keys=True)
    else:
        described = backbone.describe()["init_args"]
        text = json.dumps([described.get("tokenizer_json"), described.get("clean"), backbone.tokenizer.max_length])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _refuse_others(paths: FeaturePaths, header: Header) -> None:
    """Refuse outputs, complete or begun, that were computed by another tower or from other data."""
    for path in (paths.header, paths.path(".json.part")):
        if not path.is_file():
            continue
        try:
            found = Header.read(path)
        except ValueError as error:
            raise UserError(f"{error}; remove {paths.folder}, and start again") from None
        different = [name for key, name in NAMES.items() if getattr(found, key) != getattr(header, key)]
        if different:
            raise UserError(
                f"{paths.rows} holds the outputs of another {' and '.join(different)} than this run has; remove "
                f"{paths.folder}, or keep both and choose another folder by --data.towers"
            )


@contextmanager
def _evaluating(backbone: Backbone) -> Iterator[None]:
    """Keep a backbone in evaluation mode for a while."""
    mode = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(mode)
