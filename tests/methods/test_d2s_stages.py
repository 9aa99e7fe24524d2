"""D2S's two stages: the weights of the first stage, and the frozen teacher copied from them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from d2s_parts import SMALL, build, clip, data, trainer, vse

from itr.data.datamodule import ShardData
from itr.errors import UserError
from itr.interop.convert import save_converted
from itr.methods import CUSA, D2S
from itr.methods.d2s_teacher import FrozenText
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.passes.features import make_features
from itr.training.optim import parameter_groups


@pytest.fixture(autouse=True)
def quiet() -> None:
    from itr.commands.quieten import quieten

    quieten()


def test_the_teacher_is_a_frozen_copy_of_the_text_encoder():
    module = build().train()
    teacher = module.methods["d2s"].teacher
    assert not any(part.training for part in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    names = {name.removeprefix("encoder.").split(".")[0] for name, _ in teacher.named_parameters()}
    assert names == {"text_tower", "text_projection", "text_mlp", "text_norm", "text_pool"}
    student = {p.data_ptr() for p in module.backbone.parameters()}
    assert student.isdisjoint(p.data_ptr() for p in teacher.parameters())
    optimized = {id(p) for g in parameter_groups(module.named_parameters(), module._is_tower, module.optimizer_settings)
                 for p in g["params"]}  # fmt: skip
    assert optimized.isdisjoint(id(p) for p in teacher.parameters())
    assert any(p.requires_grad for p in module.backbone.vision_tower.parameters())


@pytest.mark.parametrize("backbone", [vse, clip, lambda: vse(freeze_text=True, freeze_vision=True)])
def test_copying_a_teacher_does_not_change_the_backbone(backbone):
    own = backbone().train()
    flags = {n: p.requires_grad for n, p in own.named_parameters()}
    modes = {n: m.training for n, m in own.named_modules()}
    random = torch.get_rng_state()
    teacher = FrozenText(own)
    assert torch.equal(random, torch.get_rng_state())
    assert flags == {n: p.requires_grad for n, p in own.named_parameters()}
    assert modes == {n: m.training for n, m in own.named_modules()}
    assert all(p.grad is None for p in own.parameters())
    assert not any("visual" in n or "vision" in n or "image" in n for n, _ in teacher.named_parameters())
    tokens = own.tokenizer(["a red dot", "two"])
    torch.testing.assert_close(teacher(tokens), own.eval().encode_text(tokens).pooled)


@pytest.mark.slow
@pytest.mark.parametrize("switch", [{}, {"residual": False, "pooling": "gpo"}, {"cross_attention": True}], ids=str)
def test_it_trains_saves_and_loads(switch, scenes, tmp_path, caplog):
    first = RetrievalModule(vse(seed=1), InfoNCE())
    trainer(tmp_path).fit(first, ShardData(str(scenes), batch_size=4, num_workers=0, texts="dense"))
    stage1 = tmp_path / "stage1.ckpt"
    torch.save({"state_dict": first.state_dict()}, stage1)
    module = build(stage1=str(stage1), **switch)
    started = module.backbone.state_dict()
    assert all(torch.equal(started[name], value) for name, value in first.backbone.state_dict().items())
    before = {name: value.clone() for name, value in module.methods["d2s"].teacher.state_dict().items()}
    runner = trainer(tmp_path)
    with caplog.at_level(logging.WARNING, logger="itr.methods.d2s"):
        runner.fit(module, data(scenes))
    assert "without a first stage" not in caplog.text
    assert runner.callback_metrics["train/d2s/distillation"] > 0
    runner.save_checkpoint(tmp_path / "m.ckpt")
    stage1.unlink()
    opened = RetrievalModule.load_from_checkpoint(tmp_path / "m.ckpt").eval()
    module.eval()
    for own in (module, opened):
        teacher = own.methods["d2s"].teacher.state_dict()
        assert teacher.keys() == before.keys()
        assert all(torch.equal(teacher[name], before[name]) for name in before)
    moved = [n for n, p in module.backbone.text_tower.named_parameters()
             if not torch.equal(p, before[f"encoder.text_tower.{n}"])]  # fmt: skip
    assert moved
    captions = ["a red circle", "two"]
    assert torch.equal(opened.encode_text(captions).pooled, module.encode_text(captions).pooled)
    assert opened.describe() == module.describe()


def test_a_run_without_first_stage_warns(scenes, tmp_path, caplog):
    module = build()
    assert "without a first stage" not in caplog.text
    with caplog.at_level(logging.WARNING, logger="itr.methods.d2s"):
        trainer(tmp_path).fit(module, data(scenes))
    assert "without a first stage" in caplog.text


def test_a_missing_first_stage_is_refused_unless_a_run_resumes(scenes, tmp_path):
    runner = trainer(tmp_path)
    runner.fit(build(), data(scenes))
    runner.save_checkpoint(tmp_path / "whole.ckpt")
    gone = str(tmp_path / "nothing.ckpt")
    with pytest.raises(UserError, match=r"nothing\.ckpt' does not exist.*itr fit --config .*--data.texts=dense"):
        trainer(tmp_path).fit(build(stage1=gone), data(scenes))
    again = trainer(tmp_path)
    again.fit(build(stage1=gone), data(scenes), ckpt_path=tmp_path / "whole.ckpt", weights_only=True)
    assert again.global_step == runner.global_step


def test_an_order_that_discards_another_method_is_refused(scenes, tmp_path):
    module = RetrievalModule(vse(), InfoNCE(), [CUSA(), D2S(**SMALL, residual=False)])
    with pytest.raises(UserError, match="discards the caption embeddings of cusa; list D2S first"):
        trainer(tmp_path).fit(module, data(scenes))


def test_a_first_stage_of_another_backbone_is_refused(tmp_path):
    path = tmp_path / "other.ckpt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="is not a checkpoint of `itr fit`"):
        build(stage1=str(path))
    torch.save({"state_dict": RetrievalModule(vse(text_norm=False), InfoNCE()).state_dict()}, path)
    with pytest.raises(UserError, match=r"a different backbone .*text_norm"):
        build(stage1=str(path))


@pytest.mark.slow
def test_dense_embeddings_of_another_first_stage_are_refused(scenes, tmp_path):
    paths = []
    for seed in (1, 2):
        paths.append(str(tmp_path / f"{seed}.ckpt"))
        save_converted(RetrievalModule(vse(seed=seed), InfoNCE()), Path(paths[-1]))
    make_features(str(scenes), "dense", str(tmp_path), paths[0], num_workers=0)
    shards = ShardData(str(scenes), batch_size=4, num_workers=0, features=str(tmp_path))
    runner = trainer(tmp_path)
    runner.fit(build(stage1=paths[0], cached=True), shards)
    runner.save_checkpoint(tmp_path / "whole.ckpt")
    again = build(cached=True)  # a resumed run knows which weights it started from
    trainer(tmp_path).fit(again, shards, ckpt_path=tmp_path / "whole.ckpt", weights_only=True)
    with pytest.raises(UserError, match=r"other weights .*\n?.*--modality dense --model .*--overwrite true"):
        trainer(tmp_path).fit(build(stage1=paths[1], cached=True), shards)
