"""Whether a file is still the one that was opened first, by what the file system says about it, without reading it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from itr.errors import UserError


@dataclass(frozen=True)
class FileState:
    """Size in bytes, times in nanoseconds and inode of a file.

    Another file under the same name, by a copy, a move or a link that points elsewhere, has another inode. A file that
    was written in place has another time.
    """

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, file: str | Path | int) -> FileState:
        """The state of a path or of an open file.

        Raises:
            OSError: it does not exist, or could not be reached.
        """
        return cls.from_stat(os.stat(file))

    @classmethod
    def from_stat(cls, found: os.stat_result) -> FileState:
        """The state that a call of `os.stat` has returned."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def same_content(self, other: FileState) -> bool:
        """Whether the two are one file with the same content, as far as the file system can tell.

        The time of the last change of the inode is not compared: a hard link or another owner changes it too.
        """
        return (self.size, self.modified, self.inode) == (other.size, other.modified, other.inode)

    def check(self, file: str | Path | int, name: str | Path) -> None:
        """Check that a file still has this state.

        Raises:
            UserError: it changed, or does not exist any more; the message calls it `name`.
        """
        try:
            same = self.same_content(FileState.of(file))
        except OSError:
            same = False
        if not same:
            raise UserError(f"{name} changed since the run began; start again, on files that do not change")
