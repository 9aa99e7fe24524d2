"""Losses as pure functions of rows of a similarity matrix; each returns these rows' part of the batch loss."""

from itr.losses.contrastive import info_nce, sigmoid
from itr.losses.soft_label import SoftLoss, Targets, cross_modal_targets, soft_label_alignment, teacher_similarity
from itr.losses.triplet import Negatives, triplet

__all__ = [
    "Negatives",
    "SoftLoss",
    "Targets",
    "cross_modal_targets",
    "info_nce",
    "sigmoid",
    "soft_label_alignment",
    "teacher_similarity",
    "triplet",
]
