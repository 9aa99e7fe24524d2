"""Ranks by counting against a naive sort, on matrices with ties and uneven numbers of captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from itr.data.shards.positives import Positives
from itr.evaluation.cosine import Cosine
from itr.evaluation.gallery import Gallery, GalleryBuilder
from itr.evaluation.ranks import Matches, precision_over_all, rank
from itr.evaluation.retrieval import evaluate, recall_table, recalls
from itr.types import Batch, Encoded, Tokens


def uneven(num_images: int, rng: np.random.Generator) -> torch.Tensor:
    """The image of each caption: from 0 to 6 captions per image, in random order."""
    own = np.repeat(np.arange(num_images), rng.integers(0, 7, size=num_images))
    return torch.from_numpy(rng.permutation(own))


def naive_ranks(scores: np.ndarray, own: np.ndarray) -> tuple[list[int], list[int]]:
    """Sort each row, wrong candidates first among equal scores, and find the first correct one."""
    image_to_text = []
    for i, row in enumerate(scores):
        if (own == i).any():
            order = sorted(range(len(row)), key=lambda j: (-row[j], own[j] == i))
            image_to_text.append(next(place for place, j in enumerate(order) if own[j] == i))
    text_to_image = []
    for j, column in enumerate(scores.T):
        order = sorted(range(len(column)), key=lambda i: (-column[i], i == own[j]))
        text_to_image.append(order.index(own[j]))
    return image_to_text, text_to_image


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [2, 5, 10**6])
@pytest.mark.parametrize("tile", [3, 7, 1000])
def test_ranks_equal_a_naive_sort(seed, levels, tile):
    rng = np.random.default_rng([seed, levels])
    num_images = int(rng.integers(2, 30))
    own = uneven(num_images, rng)
    if not len(own):
        own = torch.tensor([0])
    scores = torch.from_numpy(rng.integers(levels, size=(num_images, len(own))).astype(np.float32))
    found = rank(lambda rows, columns: scores[rows, columns], Matches.own(own, num_images), tile)
    expected = naive_ranks(scores.numpy(), own.numpy())
    assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == expected


def test_collapsed_embeddings_do_not_look_perfect():
    own = torch.arange(10)
    found = rank(Cosine(torch.ones(10, 4), torch.ones(10, 4)), Matches.own(own, 10))
    assert found.image_to_text.tolist() == found.text_to_image.tolist() == [9] * 10


def test_nan_embeddings_are_ranked_last():
    image, text = torch.eye(4), torch.eye(4)
    text[1] = torch.nan
    found = rank(Cosine(image, text), Matches.own(torch.arange(4), 4))
    assert found.text_to_image.tolist() == [0, 3, 0, 0]
    assert found.image_to_text.tolist() == [1, 3, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_embeddings_tie_in_every_tile(dtype):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(40, 33, generator=generator).to(dtype)
    text = torch.randn(120, 33, generator=generator).to(dtype)
    text[60:] = text[:60]  # each caption appears twice, with different images
    own = torch.arange(120) % 40
    found = [rank(Cosine(image, text), Matches.own(own, 40), tile) for tile in (1, 7, 64, 500)]
    for other in found[1:]:
        assert torch.equal(found[0].image_to_text, other.image_to_text)
        assert torch.equal(found[0].text_to_image, other.text_to_image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_exact_cosines_are_the_same_in_every_tile_and_in_any_order_of_their_terms(dtype):
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 257, generator=generator).to(dtype) for n in (40, 90))
    score = Cosine(image, text)
    whole = score(slice(0, 40), slice(0, 90))
    for tile in (1, 7, 64):
        for start in range(0, 90, tile):
            columns = slice(start, start + tile)
            assert torch.equal(score(slice(3, 5), columns), whole[3:5, columns])
    rows = torch.arange(40)
    assert torch.equal(score.pairs(rows, 2 * rows), whole[rows, 2 * rows])
    assert torch.equal(Cosine(image.flip(1), text.flip(1))(slice(0, 40), slice(0, 90)), whole)
    assert Cosine(image, image).pairs(rows, rows).tolist() == [1] * 40
    wide = (F.normalize(side.double(), dim=1) for side in (image, text))
    torch.testing.assert_close(whole.double(), next(wide) @ next(wide).T, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["random", "coarse", "collapsed", "coherent", "twins", "double"])
@pytest.mark.parametrize("tile", [5, 64, 4096])
def test_the_fast_path_gives_the_ranks_of_the_exact_cosines(kind, tile):
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(90, 257, generator=generator), torch.randn(300, 257, generator=generator)
    own = torch.randint(90, (300,), generator=generator)
    if kind == "coarse":  # many cosines of different embeddings are exactly equal
        image, text = image.sign(), text.sign()
        image[:, 9:], text[:, 9:] = 0, 0
    elif kind == "collapsed":
        image, text = image * 1e-7 + 1, text * 1e-7 + 1
    elif kind == "coherent":
        image, text = image.abs() * 1e3, text.abs() * 1e-3
    elif kind == "twins":
        image[45:], text[150:] = image[:45], text[:150]
    elif kind == "double":
        image, text = image.double(), text.double()
    score = Cosine(image, text)
    assert score.slack() < 1e-4
    found = rank(score, Matches.own(own, 90), tile)
    exact = score(slice(0, 90), slice(0, 300))
    assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == naive_ranks(exact.numpy(), own.numpy())
    assert (score.nearly(slice(0, 90), slice(0, 300)) - exact).abs().max() < score.slack()


@pytest.mark.parametrize("levels", [3, 10**6])
@pytest.mark.parametrize("exactly", [True, False])
def test_ranks_with_any_number_of_true_matches_on_both_sides(levels, exactly):
    rng = np.random.default_rng(levels)
    if exactly:
        scores = torch.from_numpy(rng.integers(levels, size=(23, 31)).astype(np.float32))
        score = lambda rows, columns: scores[rows, columns]  # noqa: E731
    else:
        sides = [torch.from_numpy(rng.integers(-levels, levels, size=(n, 6)).astype(np.float32)) for n in (23, 31)]
        score = Cosine(*sides)
        scores = score(slice(0, 23), slice(0, 31))
    true = torch.from_numpy(rng.random((23, 31)) < 0.07)
    found = rank(score, Matches(*true.nonzero().T, 23, 31), tile=8)
    for side, values, right in ((found.image_to_text, scores, true), (found.text_to_image, scores.T, true.T)):
        expected = []
        for row, own in zip(values.tolist(), right.tolist(), strict=True):
            if any(own):
                best = max(value for value, is_own in zip(row, own, strict=True) if is_own)
                expected.append(sum(v >= best and not is_own for v, is_own in zip(row, own, strict=True)))
        assert side.tolist() == expected


def test_recalls_and_ranks_of_a_known_case():
    found = recalls(torch.tensor([0, 0, 3, 9, 10, 100]))
    mrr = 100 * (1 + 1 + 1 / 4 + 1 / 10 + 1 / 11 + 1 / 101) / 6
    assert found == {
        "r1": 200 / 6, "r5": 50.0, "r10": 400 / 6, "medr": 7, "meanr": pytest.approx(122 / 6 + 1),
        "mrr": pytest.approx(mrr),
    }  # fmt: skip


def naive_precision(scores, positives):
    average, r_precision = [], []
    for row, own in zip(scores.tolist(), positives.tolist(), strict=True):
        if any(own):
            order = sorted(range(len(row)), key=lambda j: (-row[j], own[j]))
            hits, total = [own[j] for j in order], sum(own)
            average.append(sum(sum(hits[: k + 1]) / (k + 1) for k in range(total) if hits[k]) / total)
            r_precision.append(sum(hits[:total]) / total)
    return average, r_precision


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 10**6])
def test_precisions_equal_a_naive_sort(seed, levels):
    rng = np.random.default_rng([seed, levels])
    scores = torch.from_numpy(rng.integers(levels, size=(20, 31)).astype(np.float32))
    positives = torch.from_numpy(rng.random((20, 31)) < rng.choice([0.0, 0.1, 0.5], size=(20, 1)))
    average, r_precision = precision_over_all(scores, positives)
    assert average.tolist() == pytest.approx(naive_precision(scores, positives)[0])
    assert r_precision.tolist() == pytest.approx(naive_precision(scores, positives)[1])


def gallery(num_images: int, num_texts: int, width: int = 5) -> Gallery:
    generator = torch.Generator().manual_seed(1)

    def encoded(count: int) -> Encoded:
        tokens = torch.zeros(count, 0, width)
        return Encoded(torch.randn(count, width, generator=generator), tokens, tokens[..., 0].bool())

    ids = torch.arange(num_images) * 3
    owner = ids[torch.randint(num_images, (num_texts,), generator=generator)]
    return Gallery(encoded(num_images), ids, encoded(num_texts), torch.arange(num_texts) * 2 + 1, owner)


def test_with_only_annotated_matches_the_r_precision_of_captions_is_recall_at_1():
    found = gallery(12, 40)
    own = Positives(found.text_image_id, found.text_id)
    metrics = evaluate(found, positives=own)
    assert metrics["all/t2i_r_precision"] == pytest.approx(metrics["t2i_r1"])
    assert metrics["all/t2i_map_at_r"] == pytest.approx(metrics["t2i_r1"])
    assert metrics["all/t2i_matches"] == 1
    assert metrics["rsum"] == pytest.approx(sum(v for n, v in metrics.items() if n[:3] in ("i2t", "t2i") and "_r" in n))
    assert "R-Prec" in recall_table({f"test/{name}": value for name, value in metrics.items()})


def test_positives_of_ids_that_are_not_in_the_gallery_are_ignored():
    found = gallery(3, 4)
    truth = Positives(torch.tensor([0, 3, 7, 6]), torch.tensor([1, 99, 1, 7]))
    expected = torch.zeros(3, 4, dtype=torch.bool)
    expected[0, 0] = expected[2, 3] = True
    assert torch.equal(truth.mask(found.image_id, found.text_id), expected)


def test_a_caption_without_its_image_is_an_error():
    found = gallery(3, 4)
    found.text_image_id[2] = 1
    with pytest.raises(ValueError, match="1 captions belong to images"):
        found.own_image()


def test_saved_embeddings_are_unchanged():
    found = gallery(3, 4)
    arrays = found.arrays()
    assert set(arrays) == {"image", "text", "image_id", "caption_id", "caption_image_id", "scored_by"}
    assert np.array_equal(arrays["text"], found.text.pooled.numpy())
    assert arrays["caption_image_id"].tolist() == found.text_image_id.tolist()
    found.text.unimodal = found.text.pooled + 1
    assert np.array_equal(found.arrays()["text_unimodal"], arrays["text"] + 1)


def test_equal_images_and_equal_captions_tie_in_any_batches():
    """Of five samples, the third equals the first except for its id and the padding of its caption."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (5, 3, 3, 5), dtype=torch.uint8, generator=generator)
    ids, mask = (
        torch.randint(99, (5, 6), generator=generator),
        torch.arange(6) < torch.tensor([[4], [5], [4], [6], [5]]),
    )
    pixels[2], ids[2], ids[1, :4] = pixels[0], ids[0], ids[0, :4]
    builder = GalleryBuilder()
    for rows, length in ((slice(0, 2), 5), (slice(2, 5), 6)):
        count = rows.stop - rows.start
        pooled = torch.randn(count, 4, generator=generator)
        encoded = Encoded(pooled, pooled[:, None], torch.ones(count, 1, dtype=torch.bool))
        text = Tokens(ids[rows, :length], mask[rows, :length])
        sample = torch.arange(5)[rows]
        builder.add(Batch(pixels[rows], sample, text, sample, torch.arange(count)), encoded, encoded)
    found = builder.build()
    for side in (found.image.pooled, found.text.pooled):
        assert torch.equal(side[0], side[2])
        assert len(side.unique(dim=0)) == 4
