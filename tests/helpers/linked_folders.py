"""A folder of images with links to other folders, one of which leads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_tree(root: Path) -> Path:
    """`images` with a/1.jpg, and b, a link to a folder with 2.jfif and 3.avif; a/above leads back to `images`."""
    folder, other = root / "images", root / "elsewhere"
    (folder / "a").mkdir(parents=True)
    other.mkdir()
    for path, kind in ((folder / "a" / "1.jpg", "JPEG"), (other / "2.jfif", "JPEG"), (other / "3.avif", "AVIF")):
        noise = np.random.default_rng(len(kind)).integers(256, size=(20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, kind)
    (folder / "b").symlink_to("../elsewhere")
    (folder / "a" / "above").symlink_to("../../images")
    return folder
