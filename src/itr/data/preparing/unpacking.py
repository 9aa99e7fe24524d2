"""Write the images inside Parquet files to files, from which the shards are made.

Training images are written in a random order, but a Parquet file can only be read from its beginning to its end. So it
is read once, into files in the staging folder, which go with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from itr.data.shards.staging import Staging, reporting_disk_errors
from itr.data.tables.parquet import InnerImage, read_inner_images

UNPACKED = ".images"  # in the staging folder


def unpack_images(inner: Mapping[str, InnerImage], names: Iterable[str], staging: Staging) -> None:
    """Write the images `names` to `UNPACKED`.

    Raises:
        UserError: a Parquet file could not be read, or the disk is full.
    """
    wanted: dict[tuple[Path, str], dict[int, str]] = {}
    for name in names:
        image = inner[name]
        wanted.setdefault((image.file, image.column), {})[image.row] = name
    folder = staging.path / UNPACKED
    with tqdm(total=sum(map(len, wanted.values())), desc="unpacking", unit=" images", disable=None) as bar:
        for (file, column), rows in wanted.items():
            for row, data in read_inner_images(file, column, rows):
                with reporting_disk_errors(staging.folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / rows[row]).write_bytes(data)
                bar.update()
