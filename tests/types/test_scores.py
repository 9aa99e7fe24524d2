"""The scores of a batch and its true matches."""

from __future__ import annotations

import torch

from itr.types import Encoded, score_rows

IMAGE_ID = torch.tensor([7, 3, 7, 9])  # the first and the third pair are captions of one image


def encoded(seed: int) -> Encoded:
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Encoded(rows, rows[:, None], torch.ones(4, 1, dtype=torch.bool))


def product(image: Encoded, text: Encoded) -> torch.Tensor:
    return image.pooled @ text.pooled.T


def test_captions_of_one_image_are_true_matches_of_one_another():
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = True
    image, text = encoded(0), encoded(1)
    assert score_rows(product, image, text, IMAGE_ID, slice(0, 4)).positives.equal(expected)
    assert score_rows(product, image, text, IMAGE_ID, slice(2, 3)).positives.equal(expected[2:3])


def test_a_block_has_the_rows_of_the_whole_in_both_directions():
    image, text = encoded(0), encoded(1)
    whole = score_rows(product, image, text, IMAGE_ID, slice(0, 4))
    block = score_rows(product, image, text, IMAGE_ID, slice(1, 3))
    torch.testing.assert_close(block.image_to_text, whole.image_to_text[1:3])
    torch.testing.assert_close(block.text_to_image, whole.image_to_text.T[1:3])
    assert (block.size, block.share) == (4, 0.5)
