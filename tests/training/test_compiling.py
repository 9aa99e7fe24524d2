"""Compiled towers give the same results with few graphs, and leave no trace in a checkpoint."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from itr.backbones import CLIP, VSE
from itr.cli import main
from itr.errors import UserError
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.runs.command import TrainingCLI
from itr.training.compiling import Compilation, check_compiler
from itr.training.large_batch import LargeBatch
from itr.types import Batch, Tokens
from tiny import STILL_VSE, TINY_CLIP, TINY_VSE

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, **STILL}
VISION = {"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZE}
TEXT = {"model_type": "bert", "pad_token_id": None, **SIZE}
ROBERTA = {"model_type": "roberta", "max_position_embeddings": 40, **SIZE}
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def vse(text: dict[str, object] = TEXT) -> VSE:
    torch.manual_seed(0)
    return VSE(
        vision_config=VISION, text_config=text, dim=16, text_mlp=True, text_norm=True, visual_token_drop=0, word_mask=0
    )


def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(config=OPEN_CLIP)


def batch(length: int, pairs: int = 6) -> Batch:
    ids = torch.randint(5, 400, (pairs, length), generator=torch.Generator().manual_seed(length))
    mask = torch.arange(length) < torch.arange(length - 2, length + pairs - 2)[:, None]
    row = torch.arange(pairs)
    pixels = torch.randint(0, 256, (pairs, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Batch(pixels, row, Tokens(ids * mask, mask), row, row)


@pytest.mark.parametrize("make", [vse, lambda: vse(ROBERTA), clip], ids=["vse", "roberta", "clip"])
def test_padding_to_a_fixed_length_does_not_change_embeddings(make):
    model = make().eval()
    text = batch(7).text
    as_it_comes = model.encode_text(text)
    model.lengths = (16,)
    assert model.stretched(text).ids.shape == (6, 16)
    stretched = model.encode_text(text)
    assert torch.equal(stretched.mask, text.mask)
    torch.testing.assert_close(stretched.pooled, as_it_comes.pooled, rtol=1e-4, atol=1e-5)
    real = text.mask.unsqueeze(-1)
    torch.testing.assert_close(stretched.tokens * real, as_it_comes.tokens * real, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "expected"), [(3, 4), (4, 4), (5, 8), (9, 32), (32, 32)])
def test_a_caption_is_padded_to_the_next_length_or_to_the_longest(length, expected):
    model = clip()
    model.lengths = (4, 8)
    assert model.stretched(batch(length).text).ids.shape[1] == expected
    model.lengths = ()
    assert model.stretched(batch(length).text).ids.shape[1] == length


@pytest.mark.parametrize("lengths", [(16, 8), (0, 8), (8, 8)])
def test_lengths_that_do_not_ascend_are_refused(lengths):
    with pytest.raises(UserError, match=r"compilation\.lengths is"):
        Compilation(lengths=lengths)


def test_compilation_is_an_option_and_not_saved_in_a_checkpoint(monkeypatch):
    options = [*TINY_VSE, "--data.root=/none", "--model.compilation.towers=true", "--model.compilation.lengths=[8,16]"]
    model = TrainingCLI(options, run=False).model
    assert model.compilation == Compilation(True, (8, 16))
    assert "compilation" not in model.describe()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"compilation.towers needs a C\+\+ compiler"):
        model.compilation.begin(model)


@pytest.mark.parametrize(
    ("device", "language", "names"), [("cpu", r"C\+\+", "cxx, clang++"), ("cuda", "C", "cc1, clang")]
)
def test_a_missing_compiler_is_reported(device, language, names, monkeypatch):
    monkeypatch.setenv("CXX", "cxx")
    monkeypatch.setenv("CC", "cc1")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UserError, match=rf"teachers.compile needs a {language} compiler.*{re.escape(names)} was found; install"
    ):
        check_compiler(device, "teachers.compile")


def test_a_gpu_needs_the_python_headers(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="needs the Python headers"):
        check_compiler("cuda", "compilation.towers")
    (tmp_path / "Python.h").touch()
    check_compiler("cuda", "compilation.towers")


def losses_and_gradients(module: RetrievalModule) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """For batches whose longest captions differ."""
    found = []
    for length in (5, 7, 6):
        module.zero_grad()
        loss = module.loss_terms(batch(length), 0.0)["objective"]
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("make", "cache"), [(vse, 0), (clip, 3)], ids=["vse", "clip, gradients cached"])
def test_compiled_towers_train_like_others_with_one_graph_each(make, cache):
    from torch._dynamo.utils import counters

    counters.clear()
    module = RetrievalModule(make(), InfoNCE(), large_batch=LargeBatch(gradient_cache=cache)).train()
    names = list(module.state_dict())
    expected = losses_and_gradients(module)
    compilation = Compilation(True)
    compilation.begin(module)
    found = losses_and_gradients(module)
    assert list(module.state_dict()) == names
    for (loss, gradients), (other, others) in zip(expected, found, strict=True):
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    with compilation.suspended(module):
        module.backbone.encode_text(batch(9, pairs=2).text)
    assert counters["stats"]["unique_graphs"] == 2
    compilation.end(module)
    assert all(part._compiled_call_impl is None for part in module.modules())


def losses(folder: Path) -> list[float]:
    """The losses of all steps of all runs in a folder."""
    rows = [
        row
        for file in sorted(folder.glob("logs/*/metrics.csv"))
        for row in csv.DictReader(file.read_text().splitlines())
    ]
    return [float(row["train/loss"]) for row in rows if row.get("train/loss")]


@pytest.mark.slow
@pytest.mark.parametrize("model", [STILL_VSE, TINY_CLIP], ids=["vse", "clip"])
def test_runs_resume_with_and_without_compilation(model, scenes, tmp_path):
    """Three runs of two epochs: never compiled, compiled for the first epoch, compiled for the second."""
    curves, names = {}, {}
    for name, compiled in {"never": (), "first": (1,), "second": (2,)}.items():
        folder = tmp_path / name
        for epoch in (1, 2):
            options = [*model, f"--data.root={scenes}", "--data.batch_size=8", f"--trainer.default_root_dir={folder}"]
            options += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--data.num_workers=0"]
            options += [f"--trainer.max_epochs={epoch}", "--trainer.log_every_n_steps=1"]
            options += ["--model.optimizer.schedule=constant", *(["--ckpt_path=last"] if epoch == 2 else [])]
            options += ["--model.compilation.towers=true"] if epoch in compiled else []
            assert main(["fit", *options]) == 0
        names[name] = list(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        curves[name] = losses(folder)
    assert names["never"] == names["first"] == names["second"]
    assert len(curves["never"]) == 10
    for name in ("first", "second"):
        assert curves[name] == pytest.approx(curves["never"], rel=1e-3)
