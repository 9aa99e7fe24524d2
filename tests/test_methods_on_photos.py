"""The figures and tables of the comparison of methods on photographs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import photo_data  # noqa: E402  benchmarks is not a package
import photo_figures  # noqa: E402
from itr.data.shards.schema import Sample  # noqa: E402
from method_runs import folder_of, markdown, spread  # noqa: E402
from methods_on_photos import difference  # noqa: E402

CAPTIONS = ["a dog runs", "a dog sleeps", "two men cook", "two men talk"]


def test_images_whose_captions_share_rare_words_are_matches(monkeypatch):
    monkeypatch.setattr(photo_figures, "NEIGHBOURS", 1)
    samples = [Sample("", "", b"", row, [caption], [row], {}) for row, caption in enumerate(CAPTIONS)]
    right = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [0.2, 1.0]])
    assert photo_figures.image_to_image(right, samples) == 100
    half = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [-1.0, -1.0]])
    assert photo_figures.image_to_image(half, samples) == 50  # the last two find neither each other nor a match


def test_common_words_count_less_than_rare_ones():
    found = photo_figures.shared_words(["a dog", "a cat", "the dog", "a b c"])
    assert found[0, 2] > found[0, 1] > 0
    assert found[2, 3] == 0


def test_a_caption_should_find_another_one_of_its_image():
    own = torch.tensor([0, 0, 1, 1])
    assert photo_figures.text_to_text(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), own) == 100
    assert photo_figures.text_to_text(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]]), own) == 0


def test_the_difference_is_that_of_the_means_over_seeds():
    def run(hits):
        return {"sums": [[100.0 * hit] * 6 for hit in hits], "counts": [[1] * 6 for _ in hits]}

    base, other = [run([0, 1, 0, 0]), run([0, 0, 1, 0])], [run([1, 1, 1, 1]), run([1, 1, 1, 1])]
    assert difference(base, other).startswith("+450.0 [")
    assert difference(base, [run([0, 1, 1, 0])] * 2).startswith("+150.0 [+0.0")


def test_images_with_a_caption_by_llava_are_held_back_for_test(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_data, "HELD_BACK", 3)
    rows = [{"image": f"images/{number}.jpg", "captions": [f"a {number}", "b"]} for number in range(9)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "val.jsonl").write_text(json.dumps({"image": "images/v.jpg", "captions": ["c"]}))
    described = [
        {"image": "4.jpg", "text": "many words"},
        {"image": "8.jpg", "text": "more"},
        {"image": "x.jpg", "text": ""},
    ]
    (tmp_path / photo_data.LLAVA).write_text(json.dumps(described))
    photo_data.write_tables(tmp_path, tmp_path / "out")
    found = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "val", "test")
    }
    assert {name: len(lines) for name, lines in found.items()} == {"train": 6, "val": 1, "test": 3}
    assert {row["image"] for row in found["test"]} > {"images/4.jpg", "images/8.jpg"}
    assert not {row["image"] for row in found["test"]} & {row["image"] for row in found["train"]}
    assert all(row["dense"] == " ".join(row["captions"]) for row in found["train"])


def test_cells_show_the_spread_over_seeds():
    assert spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert spread([1.25]) == "1.2"
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    assert folder_of(Path("out"), "D2S: alignment", 3) == Path("out/D2S_alignment/3")


def test_the_vocabulary_has_the_words_that_occur_three_times(tmp_path):
    (tmp_path / "tables").mkdir()
    rows = [{"captions": ["A dog, a dog.", "The dog!"]}, {"captions": ["a cat"]}]
    (tmp_path / "tables" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    photo_data.write_words(tmp_path)
    vocabulary = json.loads((tmp_path / "words.json").read_text())["model"]["vocab"]
    assert set(vocabulary) == {"[PAD]", "[UNK]", "a", "dog"}
