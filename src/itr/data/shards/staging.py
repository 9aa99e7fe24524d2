"""Where shards are made until all are whole, and how they take the place of earlier ones.

OUT/.preparing/<split>/000000.tar    a finished shard, made by one `itr prepare`
OUT/.preparing/<split>/000000.json   what is known of it; written last
OUT/.preparing/ready.json            all shards are whole: the list of files that now move to OUT
OUT/.plan                            a hash of entries and options, by which the same command finds all done

Until then OUT stays as it is. The move begins with the old manifest leaving and ends with the new one coming, so a
manifest never names shards of another preparation; a move that was interrupted is finished by the next `itr prepare`.
Only what a manifest of `itr` names is ever deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from itr.data.shards.schema import MANIFEST, POSITIVES, STAGING, Manifest
from itr.errors import UserError
from itr.files.locks import BusyError, locked
from itr.files.writing import own_ending, whole_file

READY = "ready.json"
OLD = "old.json"
PLAN = ".plan"


class Staging:
    """The folder for shards in the making inside a shard folder; as a context, it belongs to one process at a time.

    Attributes:
        folder: the shard folder.
        path: the folder for shards in the making.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / STAGING
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Staging:
        with reporting_disk_errors(self.folder):
            self._take()
            if (self.path / READY).is_file():
                self._move()
                self._release()
                self._take()
                print(f"{self.folder}: an earlier preparation was whole but not yet in place; now it is")
            (self.path / OLD).unlink(missing_ok=True)
        return self

    def _take(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.enter_context(locked(self.path / "lock", wait=False))
        except BusyError:
            message = f"another `itr prepare` is writing to {self.folder}; wait for it, or choose another --out"
            raise UserError(message) from None

    def _release(self) -> None:
        self._lock.close()

    def __exit__(self, *error: object) -> None:
        self._release()
        if self.path.is_dir() and not any(path.is_file() for path in self.path.glob("*/*")):
            shutil.rmtree(self.path, ignore_errors=True)

    def refuse_unlisted_tars(self, splits: Sequence[str]) -> None:
        """Refuse a shard folder with tars that no manifest names: they would be taken for some of the new ones."""
        known = set(_files(self.folder / MANIFEST))
        tars = [path for split in splits for path in sorted((self.folder / split).glob("*.tar"))]
        strangers = [path for path in tars if str(path.relative_to(self.folder)) not in known]
        if strangers:
            raise UserError(
                f"{self.folder} holds {len(strangers)} tars that no manifest names, such as {strangers[0]}; "
                "choose another --out, or delete them"
            )

    def clear(self, keep: set[str]) -> int:
        """Delete what lies here but for the tars `keep` and what is known of them; how many finished ones went."""
        wanted = keep | {name.removesuffix(".tar") + ".json" for name in keep}
        there = [path for path in self.path.glob("*/*") if path.is_file()]
        strangers = [path for path in there if str(path.relative_to(self.path)) not in wanted]
        with reporting_disk_errors(self.folder):
            for path in strangers:
                path.unlink()
        return sum(path.suffix == ".json" for path in strangers)

    def publish(self, manifest: Manifest, plan: str = "") -> None:
        """Put the shards of a manifest, and the manifest, in place of what the folder holds.

        Args:
            manifest: of the shards that lie here.
            plan: a text that tells the same preparation again, see `holds`.
        """
        with reporting_disk_errors(self.folder):
            shards = [shard.path for split in manifest.splits.values() for shard in split.shards]
            extras = [f"{split}/{POSITIVES}" for split in manifest.splits]
            (self.path / PLAN).write_text(plan, encoding="utf-8")
            manifest.write(self.path)
            files = [*shards, *(name for name in extras if (self.path / name).is_file()), PLAN, MANIFEST]
            write_whole(self.path / READY, json.dumps(files))
            self._move()

    def _move(self) -> None:
        # Renames of complete files from folder to folder, in an order that an interrupted move can be continued in.
        files = json.loads((self.path / READY).read_text(encoding="utf-8"))
        current, old = self.folder / MANIFEST, self.path / OLD
        if current.is_file() and (self.path / MANIFEST).is_file():  # the new one has not moved: this is the old one
            current.replace(old)
        for name in sorted(set(_files(old)) - set(files)):
            (self.folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds more
                (self.folder / name).parent.rmdir()
        for name in files:
            if (self.path / name).is_file():
                (self.folder / name).parent.mkdir(exist_ok=True)
                (self.path / name).replace(self.folder / name)
        shutil.rmtree(self.path)

    def holds(self, plan: str) -> Manifest | None:
        """The manifest, if the folder holds the outcome of just this plan already."""
        path = self.folder / PLAN
        if not path.is_file() or path.read_text(encoding="utf-8") != plan or not (self.folder / MANIFEST).is_file():
            return None
        manifest = Manifest.read(self.folder)
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        return manifest if all(has_size(self.folder / shard.path, shard.bytes) for shard in shards) else None


def _files(manifest: Path) -> list[str]:
    """The files that a manifest stands for; none where it can't be read."""
    try:
        splits = json.loads(manifest.read_text(encoding="utf-8"))["splits"]
        shards = [str(shard["path"]) for split in splits.values() for shard in split["shards"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    inside = [name for name in shards if not os.path.isabs(name) and ".." not in Path(name).parts]
    return [*inside, *(f"{split}/{POSITIVES}" for split in splits if "/" not in split and ".." not in split)]


def has_size(path: Path, size: int) -> bool:
    """Whether a file of this size is there."""
    return path.is_file() and path.stat().st_size == size


def write_whole(path: Path, text: str) -> None:
    """Write a small file, complete or not at all; a killed process that still writes has another temporary file."""
    with whole_file(path, own_ending()) as file:
        file.write(text.encode())


@contextlib.contextmanager
def reporting_disk_errors(folder: Path) -> Iterator[None]:
    """Say it in one line if the disk refuses."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error} ({error.filename})" if error.filename else str(error.strerror or error)
        raise UserError(
            f"can't write to {folder}: {what}. Finished shards are kept: "
            "put it right and give the same command again, it goes on from there"
        ) from None
