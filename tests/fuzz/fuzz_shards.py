"""Targets that read shards: tars with any bytes and members, and the files next to them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from breaking import broken, edits, json_values, odd_names, twisted, twists
from itr.backbones.base import ImageSpec
from itr.backbones.tokenizers import BPETokenizer
from itr.data.inspecting.verify import verify
from itr.data.loading.pipeline import ShardLoader, ShardStream
from itr.data.loading.reading import ReadOptions
from itr.data.shards.locations import find_split, read_positives
from itr.data.shards.positives import Positives
from itr.data.shards.schema import Place, Split
from itr.data.shards.tars import count_tar, read_tar
from itr.data.sources.scenes import prepare_scenes
from itr.errors import UserError
from itr.images.transforms import Augmentation, EvaluationTransform, TrainingTransform
from judging import Target, check, home, material
from third_party import downloaded
from third_party import make_image as small_image

MAX_PIXELS = 1_000_000
SPEC = ImageSpec(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
KINDS = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
KINDS += [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, b"Z"]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
PACKERS = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
Member = tuple[str, bytes, bytes]  # name, type, content
TOKENIZER = BPETokenizer()


@material
def scenes() -> Path:
    """Shards that itr wrote: six images in two shards."""
    folder = Path(home(), "scenes")
    prepare_scenes(str(folder), train=6, val=2, test=2, captions=(1, 3), image_size=32, shard_size=3)
    return folder


@material
def whole(third_party: bool) -> bytes:
    """The bytes of a small tar written by itr or by img2dataset."""
    if third_party:
        return (downloaded(Path(home(), "third_party"), shards=1, each=3) / "00000.tar").read_bytes()
    return (scenes() / "train" / "000000.tar").read_bytes()


@material
def members(third_party: bool) -> tuple[Member, ...]:
    """The members of `whole`."""
    with tarfile.open(fileobj=io.BytesIO(whole(third_party))) as tar:
        return tuple((m.name, tarfile.REGTYPE, tar.extractfile(m).read()) for m in tar)  # type: ignore[union-attr]


@material
def bomb(kind: str) -> bytes:
    """A compressed tar that expands to a far larger one."""
    return PACKERS[kind](pack((*members(False)[:2], ("9.jpg", tarfile.REGTYPE, bytes(2**25))), tarfile.USTAR_FORMAT))


def pack(found: tuple[Member, ...] | list[Member], form: int, sizes: dict[int, int] | None = None) -> bytes:
    """A tar of these members; `sizes` gives some of them wrong sizes in their headers."""
    blocks = []
    for place, (name, kind, content) in enumerate(found):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "000000000.jpg" if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
        info.size = (sizes or {}).get(place, len(content))
        try:
            blocks.append(info.tobuf(form, "utf-8", "surrogateescape"))
        except ValueError:  # a name that this format cannot store
            info.name = "odd.jpg"
            blocks.append(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "replace"))
        blocks.append(content + bytes(-len(content) % 512))
    return b"".join(blocks) + bytes(1024)


def read_everywhere(folder: Path) -> None:
    """Read the tar in `folder/train` in every way, then raise the first of our errors."""
    errors: list[UserError] = []
    path = folder / "train" / "000000.tar"
    for act in (read_whole, count_whole, lambda _: read_batches(folder, True), lambda _: read_batches(folder, False)):
        try:
            act(path)
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_whole(path: Path) -> None:
    for sample in read_tar(path):
        check(isinstance(sample.image, bytes), "a sample without bytes")
        check(0 < len(sample.captions) == len(sample.caption_ids), "captions and their ids differ in number")
        check(all(isinstance(text, str) for text in sample.captions), "a caption is not a string")


def count_whole(path: Path) -> None:
    images, captions = count_tar(Place(str(path)))
    check(captions >= images >= 0, f"it counts {images} images and {captions} captions")


def read_batches(folder: Path, training: bool) -> None:
    split = find_split(folder, "train")
    reading = ReadOptions(split, 1, 2, 0, 4, MAX_PIXELS, 3)
    transform = TrainingTransform(SPEC, Augmentation()) if training else EvaluationTransform(SPEC)
    stream = ShardStream(reading, training, transform, TOKENIZER, 0, 1)
    if len(stream) > 1000:  # a false count: reading that many takes too long
        return
    for batch in ShardLoader(stream, lambda: (0, 0), num_workers=0):
        check(batch.image.shape[1:] == (3, 16, 16), f"images of shape {list(batch.image.shape)}")
        check(len(batch.text_id) == len(batch.text.ids) == len(batch.image_index), "rows of a batch differ in number")


def put(folder: Path, data: bytes) -> None:
    (folder / "train").mkdir()
    (folder / "train" / "000000.tar").write_bytes(data)


def tar_of_bytes(example: Any, folder: Path) -> None:
    third_party, packer, before, after = example
    put(folder, broken(PACKERS[packer](broken(whole(third_party), before)), after))
    read_everywhere(folder)


def tar_of_members(example: Any, folder: Path) -> None:
    third_party, form, packer, changes, sizes = example
    found = list(members(third_party))
    for kind, at, name, member_kind, content in changes:
        at %= len(found) + 1
        here = found[at] if at < len(found) else ("9.jpg", tarfile.REGTYPE, small_image(1))
        if kind == "drop":
            found[at : at + 1] = []
        elif kind == "add":
            found.insert(at, (name, member_kind, content))
        elif kind == "again":
            found.insert(at, here)
        elif kind == "move":
            found = found[at:] + found[:at]
        elif kind == "rename":
            found[at : at + 1] = [(name, here[1], here[2])]
        elif kind == "type":
            found[at : at + 1] = [(here[0], member_kind, here[2])]
        else:
            found[at : at + 1] = [(here[0], here[1], content)]
    put(folder, PACKERS[packer](pack(found, form, sizes)))
    read_everywhere(folder)


def json_member(example: Any, folder: Path) -> None:
    third_party, changes, raw = example
    found = []
    for name, kind, content in members(third_party):
        if name.endswith(".json"):
            meta = twisted(json.loads(content), changes)
            content = raw if raw is not None else json.dumps(meta).encode("utf-8", "surrogatepass")
        found.append((name, kind, content))
    put(folder, pack(found, tarfile.GNU_FORMAT))
    read_everywhere(folder)


def compressed_bomb(example: Any, folder: Path) -> None:
    kind, changes = example
    put(folder, broken(bomb(kind), changes))
    read_everywhere(folder)


def manifest(example: Any, folder: Path) -> None:
    changes, bytes_too, decode = example
    text = twisted(json.loads((scenes() / "manifest.json").read_bytes()), changes)
    for split in ("train", "val", "test"):
        (folder / split).mkdir()
        for tar in sorted((scenes() / split).glob("*")):
            (folder / split / tar.name).write_bytes(tar.read_bytes())
    (folder / "manifest.json").write_bytes(broken(json.dumps(text).encode("utf-8", "surrogatepass"), bytes_too))
    errors: list[UserError] = []
    for act in (
        lambda: read_batches(folder, True), lambda: read_batches(folder, False), lambda: find_split(folder, "val"),
        lambda: verify(str(folder), decode, num_workers=1, max_pixels=MAX_PIXELS),
    ):  # fmt: skip
        try:
            act()
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def verified(example: Any, folder: Path) -> None:
    """A tar that does not match the manifest."""
    changes, checksums = example
    text = json.loads((scenes() / "manifest.json").read_bytes())
    text["splits"] = {"train": text["splits"]["train"]}
    text["splits"]["train"]["shards"] = text["splits"]["train"]["shards"][:1]
    if not checksums:
        text["splits"]["train"]["shards"][0] |= {"bytes": 0, "sha256": ""}
    put(folder, broken(whole(False), changes))
    (folder / "manifest.json").write_text(json.dumps(text))
    verify(str(folder), num_workers=1, max_pixels=MAX_PIXELS)


def positives(example: Any, folder: Path) -> None:
    put(folder, whole(False))
    data = (scenes() / "val" / "positives.npz").read_bytes()
    (folder / "train" / "positives.npz").write_bytes(broken(data, example))
    found = read_positives(folder, "train")
    if found is not None:
        Positives.from_pairs(*found)


def stats(example: Any, folder: Path) -> None:
    put(folder, whole(True))
    counts = twisted({"count": 6, "successes": 3, "status_dict": {"success": 3}}, example[0])
    (folder / "train" / "000000_stats.json").write_bytes(broken(json.dumps(counts).encode(), example[1]))
    read_everywhere(folder)


def locations(example: Any, folder: Path) -> None:
    put(folder, whole(True))
    root, split = example
    found: Split = find_split(root.replace("FOLDER", str(folder)), split.replace("FOLDER", str(folder)))
    check(found.images > 0, "a split without images")


def _members() -> st.SearchStrategy[Any]:
    content = st.one_of(
        st.binary(max_size=64), json_values(4).map(lambda v: json.dumps(v).encode()), st.just(small_image(0))
    )
    kinds = st.sampled_from(["drop", "add", "again", "move", "rename", "type", "content"])
    change = st.tuples(kinds, st.integers(0, 9), odd_names(), st.sampled_from(KINDS), content)
    lies = st.dictionaries(st.integers(0, 8), st.integers(0, 2**35), max_size=1)
    packers = st.sampled_from(["", "", "", *PACKERS])
    return st.tuples(st.booleans(), st.sampled_from(FORMATS), packers, st.lists(change, max_size=4), lies)


def _places() -> st.SearchStrategy[Any]:
    known = st.sampled_from([
        "FOLDER", "FOLDER/train/*.tar", "FOLDER/train/{000000..000001}.tar", "train", "{0..99999999}.tar", "*.tar",
        "**",
        "file://FOLDER", "pipe:touch FOLDER/../x", "FOLDER/train/000000.tar", "FOLDER/train/000000.tar,FOLDER/x.tar",
        "/dev/zero", "FOLDER/{a,b{c}}.tar", "{9..0}{9..0}.tar", "[a-z].tar", "~root/x.tar", "../*.tar", "FOLDER/train",
    ])  # fmt: skip
    text = st.lists(st.sampled_from("{}*,.~/0123456789ab[]?%\x00é "), max_size=14).map("".join)
    return st.one_of(known, text, st.tuples(known, text).map("".join))


TARGETS = [
    Target(
        "tar bytes",
        lambda: st.tuples(st.booleans(), st.sampled_from(["", "", "", *PACKERS]), edits(), edits(2)),
        tar_of_bytes,
        sound=(False, "", [], []),
    ),
    Target("tar members", _members, tar_of_members, sound=(True, tarfile.PAX_FORMAT, "xz", [], {})),
    Target(
        "sample JSON",
        lambda: st.tuples(st.booleans(), twists(), st.one_of(st.none(), st.none(), st.binary(max_size=40))),
        json_member,
        sound=(False, [], None),
    ),
    Target("compressed bombs", lambda: st.tuples(st.sampled_from(["gz", "bz2", "xz"]), edits(2)), compressed_bomb),
    Target("manifest", lambda: st.tuples(twists(), edits(1), st.booleans()), manifest, sound=([], [], True)),
    Target("verify", lambda: st.tuples(edits(), st.booleans()), verified, sound=([], True)),
    Target("positives", edits, positives, sound=[]),
    Target("stats beside tars", lambda: st.tuples(twists(), edits(1)), stats, sound=([], [])),
    Target("lists of tars", lambda: st.tuples(_places(), _places()), locations, sound=("FOLDER/train/*.tar", "train")),
]
