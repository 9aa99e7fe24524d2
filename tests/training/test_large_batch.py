"""Settings of large batches: rows, messages, checkpoints, and the memory of a loss in chunks."""

from __future__ import annotations

import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn

from exact_parts import make_module
from itr.commands.quieten import quieten
from itr.errors import UserError
from itr.interop.convert import save_converted
from itr.module import RetrievalModule
from itr.runs.command import TrainingCLI
from itr.training.large_batch import LargeBatch
from peak_memory import measure
from tiny import STILL_VSE, TINY_VSE


def trainer(**options) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


@pytest.mark.parametrize(("chunk", "size"), [(0, 12), (5, 12), (1, 3), (12, 12), (99, 4)])
def test_blocks_cover_the_rows_in_order(chunk, size):
    blocks = LargeBatch(loss_chunk=chunk).blocks(size)
    assert [row for rows in blocks for row in range(size)[rows]] == list(range(size))
    assert all(rows.stop - rows.start <= (chunk or size) for rows in blocks)


@pytest.mark.parametrize("name", ["loss_chunk", "gradient_cache"])
def test_a_negative_number_is_refused(name):
    with pytest.raises(UserError, match=f"large_batch.{name} is -1; it must be 0"):
        LargeBatch(**{name: -1})


def test_the_command_line_sets_all_settings():
    options = [*TINY_VSE, "--data.root=/none", "--model.large_batch.local_loss=true"]
    options += ["--model.large_batch.loss_chunk=1024", "--model.large_batch.gradient_cache=64"]
    assert TrainingCLI(options, run=False).model.large_batch == LargeBatch(True, 1024, 64)


def test_checkpoints_do_not_store_the_settings(tmp_path):
    module = make_module("info_nce", LargeBatch(True, 7, 5)).float()
    save_converted(module, tmp_path / "new.ckpt")
    assert RetrievalModule.load_from_checkpoint(tmp_path / "new.ckpt").large_batch == LargeBatch()


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_warning_explains_gradient_accumulation(caplog, scheduled):
    options = (
        {"callbacks": [GradientAccumulationScheduler({0: 1, 2: 4})]} if scheduled else {"accumulate_grad_batches": 4}
    )
    LargeBatch().announce(make_module("info_nce", LargeBatch()), trainer(**options))
    assert "gradients of 4 batches are averaged" in caplog.text
    assert "--model.large_batch.gradient_cache" in caplog.text
    caplog.clear()
    LargeBatch(gradient_cache=4).announce(make_module("info_nce", LargeBatch()), trainer())
    assert not [record for record in caplog.records if record.name.startswith("itr")]


def fit(scenes, folder, *more: str) -> pl.Trainer:
    """A training step in parts and chunks."""
    quieten()
    options = [*STILL_VSE, f"--data.root={scenes}", "--data.batch_size=8", f"--trainer.default_root_dir={folder}"]
    options += ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.logger=false", "--data.num_workers=0"]
    options += ["--model.large_batch.gradient_cache=3", "--model.large_batch.loss_chunk=3"]
    cli = TrainingCLI([*options, "--trainer.limit_val_batches=0", *more], run=False)
    cli.trainer.fit(cli.model, cli.datamodule)
    return cli.trainer


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_the_second_pass_has_the_precision_of_the_first(scenes, tmp_path, precision):
    trainer = fit(scenes, tmp_path, f"--trainer.precision={precision}")
    assert trainer.global_step == 1
    assert torch.get_default_dtype() == torch.float32


def test_a_run_warns_about_gradient_accumulation(scenes, tmp_path, caplog):
    assert fit(scenes, tmp_path, "--trainer.accumulate_grad_batches=2").global_step == 1
    assert "gradients of 2 batches are averaged" in caplog.text
    assert "batch normalisation" not in caplog.text


def test_batch_normalisation_layers_are_named_in_a_warning(caplog):
    module, settings = (
        nn.ModuleDict({"own": nn.BatchNorm1d(3), "other": nn.BatchNorm1d(3)}),
        LargeBatch(gradient_cache=4),
    )
    module["own"].eval()
    settings.announce(module, trainer())
    assert "batch normalisation sees this many pairs" in caplog.text
    assert ": other" in caplog.text
    assert "own" not in caplog.text
    with pytest.raises(UserError, match=r"trainer\.sync_batchnorm"):
        settings.announce(nn.SyncBatchNorm.convert_sync_batchnorm(module), trainer())


PREPARE = """
from itr.backbones import Backbone
from itr.objectives import InfoNCE
from itr.training.large_batch import LargeBatch
from itr.types import score_rows
from itr.types import Encoded

objective, ids, empty = InfoNCE(), torch.arange(4096), torch.empty(4096, 0, 256)
image, text = (Encoded(torch.randn(4096, 256, requires_grad=True), empty, empty[..., 0].bool()) for _ in range(2))

def similarity(one, other):
    return Backbone.similarity(None, one, other)

def share(image, text, extra, rows):
    return {"objective": objective(score_rows(similarity, image, text, ids, rows), 0.0)}
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_memory_of_a_loss_in_chunks_grows_with_the_chunk():
    step = "LargeBatch(loss_chunk=setting).sum_of_shares(share, image, text, {}, objective)['objective'].backward()"
    (plain, plain_seconds), (chunks, chunk_seconds) = (measure(PREPARE, step, chunk) for chunk in (0, 256))
    print(f"{plain:.0f} MiB and {plain_seconds:.1f} s; in chunks: {chunks:.0f} MiB and {chunk_seconds:.1f} s")
    assert plain > 400, "too small to measure"
    assert chunks < plain / 4
