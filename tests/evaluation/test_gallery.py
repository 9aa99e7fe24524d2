"""Galleries of samples that share an image, by id or by content."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from itr.data.shards.schema import Sample, parse_sample
from itr.embedding.files import gallery_of, pooled_only
from itr.errors import UserError
from itr.evaluation.gallery import Gallery, GalleryBuilder
from itr.evaluation.provenance import measured, measured_notes
from itr.evaluation.retrieval import evaluate
from itr.types import Batch, Tokens


def built(image_ids: list[int], contents: list[int], text_ids: list[int], words: list[int]) -> Gallery:
    """A gallery of one sample per caption, in batches of two; equal contents give equal pixels and embeddings."""
    builder = GalleryBuilder()
    for start in range(0, len(image_ids), 2):
        part = slice(start, start + 2)
        content, word = torch.tensor(contents[part]), torch.tensor(words[part])
        pixels = content.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
        tokens = Tokens(word[:, None], torch.ones(len(word), 1, dtype=torch.bool))
        ids = torch.tensor(image_ids[part]), torch.tensor(text_ids[part])
        batch = Batch(pixels, ids[0], tokens, ids[1], torch.arange(len(word)))
        builder.add(batch, pooled_only(torch.eye(8)[content]), pooled_only(torch.eye(8)[word]))
    return builder.build()


def test_samples_with_one_id_are_one_image_with_all_captions():
    gallery = built([5, 5, 3, 3], [1, 1, 2, 2], [10, 11, 12, 13], [1, 1, 2, 2])
    assert gallery.image_id.tolist() == [3, 5]
    assert gallery.text_image_id.tolist() == [5, 5, 3, 3]
    assert gallery.num_samples == 4
    assert gallery.merged() is gallery
    assert evaluate(gallery)["t2i_r1"] == 100


def test_images_of_one_content_are_merged_into_the_one_with_the_lowest_id():
    gallery = built([9, 5, 3, 4], [1, 1, 2, 2], [10, 11, 12, 13], [1, 1, 2, 2])
    assert (gallery.num_equal, gallery.num_samples) == (2, 4)
    assert evaluate(gallery)["t2i_r1"] == 0  # equal images tie, so no model could do better
    merged = gallery.merged()
    assert merged.image_id.tolist() == [3, 5]
    assert merged.text_id.tolist() == [10, 11, 12, 13]
    assert merged.text_image_id.tolist() == [5, 5, 3, 3]
    assert merged.image.pooled.argmax(dim=1).tolist() == [2, 1]
    assert evaluate(merged)["t2i_r1"] == evaluate(merged)["i2t_r1"] == 100
    found = measured({"images": 4, "captions": 4}, 2, 4, merged.num_samples)
    assert found == {"images": 2, "captions": 4, "merged_samples": 2}
    assert measured_notes(found) == [
        "2 samples have an image equal to that of another sample, and were merged with it: "
        "2 images with 4 captions were measured"
    ]


def test_the_same_sample_of_two_processes_counts_once():
    gallery = built([5, 3, 5], [1, 2, 1], [10, 12, 10], [1, 2, 1])
    assert (len(gallery.image_id), len(gallery.text_id), gallery.num_samples) == (2, 2, 2)


@pytest.mark.parametrize(
    ("image_ids", "contents", "text_ids", "words", "message"),
    [
        ([5, 3, 5], [1, 2, 3], [10, 11, 12], [1, 2, 3], r"image_id 5 belongs to different images \(1 such rows\)"),
        ([5, 3, 4], [1, 2, 3], [10, 10, 12], [1, 1, 3], "caption_id 10 belongs to different captions"),
        ([5, 5], [1, 1], [10, 10], [1, 2], "caption_id 10 belongs to different captions"),
    ],
)
def test_an_id_of_different_images_or_captions_is_refused(image_ids, contents, text_ids, words, message):
    with pytest.raises(UserError, match=message):
        built(image_ids, contents, text_ids, words)


def test_a_file_of_embeddings_keeps_equal_images_and_samples():
    gallery = built([9, 5, 3, 3], [1, 1, 2, 2], [10, 11, 12, 13], [1, 1, 2, 2])
    arrays = {key: torch.from_numpy(value) for key, value in gallery.arrays().items() if value.dtype.kind in "iufb"}
    again = gallery_of(arrays, "a file").merged()
    assert again.image_id.tolist() == [3, 5]
    assert again.num_samples == 4
    plain = built([9, 5], [1, 2], [10, 11], [1, 2]).arrays()
    assert not {"image_same_as", "num_samples"} & set(plain)
    with pytest.raises(UserError, match="image_same_as must be 3 whole numbers"):
        gallery_of(arrays | {"image_same_as": torch.zeros(1).long()}, "a file")
    with pytest.raises(UserError, match="num_samples must be 3 or more"):
        gallery_of(arrays | {"num_samples": torch.tensor(1)}, "a file")


def sample(key: str, **meta: object) -> Sample:
    head = {"__url__": "a.tar", "__key__": key, "__shard__": "a.tar", "__folder__": ""}
    return parse_sample({**head, "jpg": b"x", "json": json.dumps({"caption": "a", **meta}).encode()})


@pytest.mark.parametrize("given", [1000, "COCO_1000", 1000.0, -3])
def test_samples_share_the_image_id_of_the_table_but_no_caption_id(given):
    first, second = sample("0", image_id=given), sample("1", image_id=given)
    assert first.image_id == second.image_id >= 0
    assert first.caption_ids != second.caption_ids
    assert isinstance(first.image_id, int)


@pytest.mark.parametrize("given", [None, "", " ", np.nan, True, [1], {}])
def test_samples_without_an_image_id_are_different_images(given):
    assert sample("0", image_id=given).image_id != sample("1", image_id=given).image_id


def test_whole_numbers_written_with_a_point_are_the_same_ids():
    assert sample("0", image_id=1000.0).image_id == sample("1", image_id=1000).image_id == 1000
