"""Every row of the tables in `docs/backbones.md` is true of the libraries, and its architecture is built small."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from itr.backbones import CLIP, VSE, Dual
from itr.backbones.dual.families import FAMILIES
from tiny_families import BUILDERS, DUAL, PAGE, Row, rows

ROWS = rows()
OFTEN = {("CLIP", "OpenCLIP ViT"), ("CLIP", "NLLB text"), ("Dual", "ALIGN"), ("vision", "DINOv2"), ("text", "MPNet")}


def case(row: Row) -> Any:
    often = (row.table, row.family) in OFTEN
    return pytest.param(row, id=f"{row.table} {row.family}", marks=() if often else pytest.mark.slow)


def test_the_page_has_a_builder_for_every_family() -> None:
    found = {table: [row.family for row in ROWS if row.table == table] for table in BUILDERS}

    assert len(ROWS) >= 25
    assert {row.table for row in ROWS} == BUILDERS.keys()
    for table, names in found.items():
        assert sorted(names) == sorted(BUILDERS[table])


@pytest.mark.parametrize("row", [case(row) for row in ROWS])
@torch.no_grad()
def test_a_family_is_built_small(row: Row) -> None:
    torch.manual_seed(0)
    model = BUILDERS[row.table][row.family](row).eval()
    for parameter in model.parameters():  # some architectures start with zeros
        parameter.add_(0.02 * torch.randn_like(parameter))
    size = model.image_spec.size
    image = model.encode_image(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    text = model.encode_text(model.tokenizer(["a dog", "a cat sits on the mat", ""]))

    assert model.similarity(image, text).isfinite().all()
    assert image.pooled.shape == (2, model.dim)
    assert text.pooled.shape == (3, model.dim)
    assert image.tokens.shape[-1] == text.tokens.shape[-1] == model.dim
    for side in (image, text):
        assert (side.unit[0] - side.unit[1]).abs().max() > 1e-5


@pytest.mark.parametrize("row", [row for row in ROWS if row.table == "CLIP"], ids=lambda row: row.family)
def test_names_and_sizes_are_those_of_open_clip(row: Row) -> None:
    name, tag = (row.options[f"--model.backbone.{option}"] for option in ("model", "pretrained"))
    config = open_clip.get_model_config(name)

    assert tag in open_clip.list_pretrained_tags_by_model(name)
    assert row.cells["px"] == str(config["vision_cfg"]["image_size"])
    assert row.cells["tokens"] == str(config["text_cfg"].get("context_length", 77))


def test_the_other_tables_name_options_and_lengths_that_exist() -> None:
    import inspect

    classes = {"CLIP": CLIP, "Dual": Dual, "vision": VSE, "text": VSE}
    for row in ROWS:
        options = [name.removeprefix("--model.backbone.") for name in row.options if name != "--model.backbone"]
        assert set(options) <= set(inspect.signature(classes[row.table].__init__).parameters), row.family
        assert row.options["--model.backbone"] == classes[row.table].__name__
        if row.table == "Dual":
            assert row.cells["tokens"] == str(FAMILIES[DUAL[row.family]].context)


def test_every_figure_has_a_source() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for row in ROWS:
        figures = [row.cells[name] for name in ("Flickr30K", "COCO") if row.cells.get(name)]
        source = row.cells.get("from", "")[:3]
        assert bool(figures) == bool(source), row.family
        assert not source or f"\n{source}: https://" in page
        for figure in figures:
            i2t, t2i = map(float, figure.split(" / "))
            assert 0 < t2i < i2t < 100
