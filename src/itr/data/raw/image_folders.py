"""Finding images by name. Each folder is listed once, however many names are looked up."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from itr.errors import UserError
from itr.images.kinds import IMAGE_TYPES, image_type

# Where the images of Flickr30K and COCO usually are, relative to the given folder; "" is the folder itself.
USUAL_FOLDERS = (
    "", "flickr30k-images", "flickr30k_images", "flickr30k-images/flickr30k-images",
    "flickr30k_images/flickr30k_images", "images", "Images", "train2014", "val2014", "train2017", "val2017",
    "images/train2014", "images/val2014", "images/train2017", "images/val2017",
)  # fmt: skip
COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})\.jpg")  # the name of 2014, or of 2017


class ImageFolders:
    """The images in some folders below a root, by path, by name and by name without extension.

    Args:
        root: folder that paths are relative to.
        folders: folders to search, relative to the root; the first one that has a name wins.

    Attributes:
        root: as given.
        folders: those that exist.
    """

    def __init__(self, root: Path, folders: Sequence[str] = USUAL_FOLDERS) -> None:
        self.root = root
        self.folders = [folder for folder in folders if (root / folder).is_dir()]

    @classmethod
    def under(cls, folder: Path, image_root: str | None) -> ImageFolders:
        """The images of a data set: below `image_root` if given, else below the folder of the data set.

        Raises:
            UserError: the folder does not exist.
        """
        root = Path(image_root).expanduser() if image_root else folder
        if not root.is_dir():
            raise UserError(f"folder {root} does not exist; pass the folder of the images as --image_root")
        return cls(root)

    @cached_property
    def paths(self) -> dict[str, None]:
        """All paths, relative to the root, sorted by name within each folder."""
        found: dict[str, None] = {}
        for folder in self.folders:
            with os.scandir(self.root / folder) as items:
                names = sorted(item.name for item in items)
            for name in names:
                if image_type(name) in IMAGE_TYPES:
                    found[f"{folder}/{name}" if folder else name] = None
        return found

    @cached_property
    def by_name(self) -> dict[str, str]:
        """Path of each file name."""
        return {path.rpartition("/")[2]: path for path in reversed(self.paths)}

    @cached_property
    def by_stem(self) -> dict[str, str]:
        """Path of each file name without its extension."""
        return {name.rpartition(".")[0]: path for name, path in self.by_name.items()}

    @cached_property
    def by_number(self) -> dict[int, str]:
        """Path of each COCO image id, taken from the end of the name: `COCO_val2014_000000391895.jpg`."""
        matches = ((re.search(r"(?:^|_)(\d{12})$", stem), path) for stem, path in self.by_stem.items())
        return {int(match[1]): path for match, path in matches if match}

    def find(self, name: str) -> str:
        """The path of an image given by name, with or without its folder; `name` itself if it is not found."""
        name = name.strip().replace("\\", "/").removeprefix("./")
        if name in self.paths or name.startswith("/") or ".." in name.split("/"):
            return name  # the writer rejects paths that lead out of the root
        file_name = name.rpartition("/")[2]
        found = self.by_name.get(file_name)
        if found is None and (coco := COCO_NAME.fullmatch(file_name)):  # the same image by its name of another year
            found = self.by_number.get(int(coco[1]))
        return found or name
