"""Losses as pure functions of a similarity matrix. Rows are images, columns are captions."""

from itr.losses.contrastive import info_nce, sigmoid
from itr.losses.triplet import Negatives, triplet

__all__ = ["Negatives", "info_nce", "sigmoid", "triplet"]
