"""`itr features`: run a frozen teacher once over the images or captions of shards, and store its features."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from itr.commands.inputs import check_teacher
from itr.commands.parsing import options_of
from itr.commands.verbs import parse
from itr.data.features.headers import FeaturePaths, Header, described
from itr.data.features.imported import import_features
from itr.data.features.reader import Chunk, ChunkReader, load_chunks
from itr.data.features.sharing import Share, print_outcome, split_names, store_chunks
from itr.data.features.writer import FeatureWriter
from itr.data.loading.dense_texts import DenseTexts
from itr.data.shards.locations import find_split
from itr.data.shards.patterns import names_tars
from itr.data.shards.schema import data_identity
from itr.distributed import choose_device
from itr.errors import UserError
from itr.passes.first_stage import first_stage_teacher
from itr.teachers.base import Modality, Precision, Teacher
from itr.teachers.load import TeacherOutput, load_teacher


def make_features(
    data: str,
    modality: Modality,
    out: str,
    model: str | None = None,
    splits: str = "train",
    batch_size: int = 64,
    num_workers: int = 2,
    output: TeacherOutput = "pooled",
    precision: Precision = "32",
    device: str = "auto",
    process: int | None = None,
    of: int | None = None,
    max_skipped: int = 10,
    max_pixels: int = 50_000_000,
    overwrite: bool = False,
    from_npy: str | None = None,
    trust_pickle: bool = False,
    cache: str | None = None,
) -> None:
    """Encode the images or captions of shards with a frozen teacher, once.

    To continue after an interruption, run the same command again.

    Args:
        data: folder or URL of the shards, or a list of tars such as 'https://host/{00000..00041}.tar' or 'tars/*.tar',
            which is one split under the name that --splits gives.
        modality: what to encode: images (image), captions (text), or the dense caption of each image (dense).
        out: folder to write to; all modalities and splits can share it.
        model: text: folder or name of sentence-transformers or transformers; images: of transformers, a name of timm,
            open_clip:MODEL/TAG, or unicom:FILE for an official weights file of UNICOM; dense: the checkpoint of D2S's
            first stage.
        splits: splits to encode, separated by commas.
        batch_size: images or captions per batch.
        num_workers: processes that read and decode.
        output: one pooled embedding per image, or all its tokens, concatenated, as the authors of CUSA do (37,632
            numbers of UNICOM).
        precision: of the teacher; features are stored in half precision in any case.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
        process: number of this process among several that share the work, from 0; torchrun sets it.
        of: how many share the work; torchrun sets it.
        max_skipped: images that may fail to decode; training skips them too.
        max_pixels: images with more pixels are not decoded.
        overwrite: remove earlier features.
        from_npy: instead of running a model, convert a {split}_unicom.npy of the authors of CUSA; or, for shards of
            `itr prepare mag`, an array [nodes, width] in the order of the nodes (TextFeature/*.npy, ImageFeature/*.npy)
            or MM-Graph's tensor of text and image side by side (clip_feat.pt).
        trust_pickle: confirms that you trust the source of this dictionary (it is read with a whitelist nevertheless).
        cache: folder for copies of shards that come from a URL.
    """
    target, names = Path(out).expanduser(), split_names(splits, data)
    if names_tars(data) and len(names) != 1:
        raise UserError(f"--data {data} lists tars, which are one split; give it one name with --splits")
    share = Share.given(process, of)
    share.check(batch_size, overwrite)
    check_teacher(model, from_npy)
    found = {name: find_split(data, name, cache) for name in names}
    complete = True
    if model is None:
        import_features(Path(from_npy or "").expanduser(), found, target, modality, trust_pickle, overwrite)
    else:
        teacher = open_teacher(model, modality, output, precision, choose_device(device, share.process))
        settings = {"output": output, "precision": precision, "batch_size": batch_size}
        for name, split in found.items():
            rows = split.captions if modality == "text" else split.images
            header = Header(model, modality, teacher.width, rows, data_identity(split), settings, teacher.weights)
            writer = FeatureWriter(FeaturePaths(target, name, modality), header, batch_size, overwrite)
            todo = writer.todo(share.chunks(writer.num_chunks))
            texts = DenseTexts.open(data, name, header.data) if modality == "dense" else None
            reader = ChunkReader(
                split, modality, batch_size, todo, teacher.transform, max_pixels, texts, teacher.tokenizer
            )
            chunks = load_chunks(reader, num_workers, max_skipped)
            complete = encode(teacher, reader, chunks, writer) and complete
    print_outcome(complete, share, data, f"--data.features {out}")


def open_teacher(model: str, modality: Modality, output: TeacherOutput, precision: Precision, device: str) -> Teacher:
    """The teacher that `--model` names, ready to encode."""
    if modality == "dense":
        teacher = first_stage_teacher(model, device, precision)
    else:
        teacher = load_teacher(modality, model, output, device, precision)
    teacher.settle()
    return teacher


def encode(teacher: Teacher, reader: ChunkReader, chunks: Iterable[Chunk], writer: FeatureWriter) -> bool:
    """Encode the chunks of `reader` and write their features; returns whether all processes are done now."""
    paths = writer.paths

    def write(chunk: Chunk, rows: Tensor) -> None:
        writer.write(chunk.number, chunk.ids, rows.cpu(), chunk.marks, chunk.bad)

    if writer.complete:
        print(f"{paths.split}: {paths.rows} already exists ({described(paths)})")
        return True
    complete = store_chunks(writer, reader, _encoded(teacher, chunks), write, f"{paths.split} {paths.modality}")
    if complete:
        print(f"{paths.split}: wrote {described(paths)} to {paths.rows} ({paths.rows.stat().st_size / 1e6:,.1f} MB)")
    return complete


def _encoded(teacher: Teacher, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Tensor]]:
    """Chunks with their features on the teacher's device, each yielded once the next one has been started.

    So the GPU works while the features of the previous chunk are copied and written.
    """
    before: tuple[Chunk, Tensor] | None = None
    for chunk in chunks:
        now = chunk, teacher.features(chunk.inputs)
        if before is not None:
            yield before
        before = now
    if before is not None:
        yield before


def main(arguments: list[str]) -> None:
    """Parse the command line and make features."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    make_features(**options_of(parse(arguments)[1]))
