"""A staging folder for shards until all are complete, and how they replace earlier ones.

OUT/.preparing/<split>/000000.tar    a finished shard, made by one `itr prepare`
OUT/.preparing/<split>/000000.json   its description; written last
OUT/.preparing/ready.json            all shards are complete: the list of files that now move to OUT
OUT/.plan                            a hash of entries and options, which shows the same command that all is done

Until then OUT does not change. The move removes the old manifest first and adds the new one last, so a manifest never
lists shards of another preparation; the next `itr prepare` finishes a move that was interrupted. Only files that a
manifest of `itr` lists are ever deleted.
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
    """The folder for unfinished shards inside a shard folder; as a context, only one process can hold it.

    Attributes:
        folder: the shard folder.
        path: the folder for unfinished shards.
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
                print(f"{self.folder}: an earlier preparation was complete but not in place; it has now been moved")
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
        """Refuse a shard folder with tars that no manifest lists: they would be mistaken for new ones."""
        known = set(_files(self.folder / MANIFEST))
        tars = [path for split in splits for path in sorted((self.folder / split).glob("*.tar"))]
        unlisted = [path for path in tars if str(path.relative_to(self.folder)) not in known]
        if unlisted:
            raise UserError(
                f"{self.folder} holds {len(unlisted)} tars that no manifest lists, such as {unlisted[0]}; "
                "choose another --out, or delete them"
            )

    def clear(self, keep: set[str]) -> int:
        """Delete staged files except the tars `keep` and their descriptions; returns the number of finished ones."""
        wanted = keep | {name.removesuffix(".tar") + ".json" for name in keep}
        there = [path for path in self.path.glob("*/*") if path.is_file()]
        rest = [path for path in there if str(path.relative_to(self.path)) not in wanted]
        with reporting_disk_errors(self.folder):
            for path in rest:
                path.unlink()
        return sum(path.suffix == ".json" for path in rest)

    def publish(self, manifest: Manifest, plan: str = "") -> None:
        """Replace the contents of the shard folder by the staged shards and their manifest.

        Args:
            manifest: of the staged shards.
            plan: a text that identifies this preparation, see `holds`.
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
        # Complete files are renamed from folder to folder, in an order that allows an interrupted move to be continued.
        files = json.loads((self.path / READY).read_text(encoding="utf-8"))
        current, old = self.folder / MANIFEST, self.path / OLD
        if current.is_file() and (self.path / MANIFEST).is_file():  # the new one is still staged: this is the old one
            current.replace(old)
        for name in sorted(set(_files(old)) - set(files)):
            (self.folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder is not empty
                (self.folder / name).parent.rmdir()
        for name in files:
            if (self.path / name).is_file():
                (self.folder / name).parent.mkdir(exist_ok=True)
                (self.path / name).replace(self.folder / name)
        shutil.rmtree(self.path)

    def holds(self, plan: str) -> Manifest | None:
        """The manifest, if the folder already holds the result of exactly this plan; otherwise None."""
        path = self.folder / PLAN
        if not path.is_file() or path.read_text(encoding="utf-8") != plan or not (self.folder / MANIFEST).is_file():
            return None
        manifest = Manifest.read(self.folder)
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        return manifest if all(has_size(self.folder / shard.path, shard.bytes) for shard in shards) else None


def _files(manifest: Path) -> list[str]:
    """The files that a manifest lists; empty if it could not be read."""
    try:
        splits = json.loads(manifest.read_text(encoding="utf-8"))["splits"]
        shards = [str(shard["path"]) for split in splits.values() for shard in split["shards"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    inside = [name for name in shards if not os.path.isabs(name) and ".." not in Path(name).parts]
    return [*inside, *(f"{split}/{POSITIVES}" for split in splits if "/" not in split and ".." not in split)]


def has_size(path: Path, size: int) -> bool:
    """Whether a file of this size exists."""
    return path.is_file() and path.stat().st_size == size


def write_whole(path: Path, text: str) -> None:
    """Write a small file, complete or not at all; every process has its own temporary file."""
    with whole_file(path, own_ending()) as file:
        file.write(text.encode())


@contextlib.contextmanager
def reporting_disk_errors(folder: Path) -> Iterator[None]:
    """Report errors of the disk in one line, as a UserError."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error} ({error.filename})" if error.filename else str(error.strerror or error)
        raise UserError(
            f"could not write to {folder}: {what}. Finished shards are kept: "
            "solve the problem and run the same command again to continue"
        ) from None
