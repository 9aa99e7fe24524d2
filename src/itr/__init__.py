"""Train, measure and use image-text retrieval."""

from itr.moved import find_moved_modules

find_moved_modules()
