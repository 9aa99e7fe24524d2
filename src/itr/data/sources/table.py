"""`itr prepare table`: rows with an image and one or more captions, as JSONL, JSON, CSV, TSV or Parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from itr.data.raw.entries import RawData, draw_splits
from itr.data.raw.table_entries import Columns, TableEntries, name_inner_images
from itr.data.sources.base import Source
from itr.data.tables.finding import find_tables
from itr.errors import UserError


@dataclass
class Table(Source):
    """Turn tables of images and captions into shards.

    Args:
        root: a table, or a folder with one table, with tables named `train`, `val` and `test`, or with folders of these
            names that contain a table `metadata` (as in the Hugging Face hub). A single table is split by its column
            `split` if it has one; otherwise, images are drawn at random for `val` and `test`. Images may also be inside
            Parquet files.
        image_root: folder that the image paths are relative to; by default, the folder of the table.
        image_column: column of the image path; by default one of image, image_path, filepath, filename, file, path.
        caption_column: column of the caption or captions; by default one of captions, caption, text, sentences, title,
            or caption_1, caption_2 ...
        holdout: fraction of the images to draw for `val`, and again for `test`, if the table defines no splits.
        seed: random seed of the draw.

    Raises:
        UserError: a table is missing or malformed, or has no column of images or captions.
    """

    root: str
    image_root: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    holdout: float = 0.1
    seed: int = 0

    def read(self) -> RawData:
        """The images of each split with their captions."""
        if not 0 <= self.holdout < 0.5:
            raise UserError(f"holdout={self.holdout} must be at least 0 and less than 0.5")
        top = Path(self.root).expanduser()
        folder = top if top.is_dir() else top.parent
        root = Path(self.image_root).expanduser() if self.image_root else folder
        found = TableEntries(Columns(self.image_column, self.caption_column), root)
        for table in find_tables(top):
            found.add(table, with_folder=self.image_root is None)
        entries, settings = found.by_split(), {}
        if "" in entries:
            entries = draw_splits(entries[""], self.holdout, self.seed, found.names)
            settings = {"holdout": self.holdout}
        inner = name_inner_images(entries, found.inner)
        entries = {split: entries[split] for split in ("train", "val", "test") if split in entries}
        return RawData(root, entries, "table", settings, inner)
