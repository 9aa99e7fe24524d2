"""The module, built in Python, with a method and with a backbone that scores pairs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from itr.backbones import VSE
from itr.checkpoints import open_checkpoint
from itr.component import IMPORTS
from itr.data.datamodule import ShardData
from itr.errors import UserError
from itr.images.transforms import Augmentation
from itr.methods import Method, MethodModule
from itr.module import RetrievalModule
from itr.objectives import InfoNCE
from itr.training.optim import OptimizerSettings, lr_factor, parameter_groups
from itr.types import Encoded
from late_interaction import LateInteraction
from tiny import save_checkpoint

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZE}
TEXT = {"model_type": "bert", "pad_token_id": None, **SIZE}


class Scaled(MethodModule):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def embed_text(self, encoded: Encoded) -> Encoded:
        return Encoded(encoded.pooled * self.scale, encoded.tokens, encoded.mask)

    def losses(self, pairs) -> dict[str, Tensor]:
        return {"norm": pairs.share * (self.scale**2).sum(), "unused": pairs.share * self.scale.sum()}

    def clamp(self) -> None:
        self.scale.data.clamp_(max=0.9)


class Scale(Method):
    """A minimal method: a learnable scale of the text embedding, with a loss."""

    name = "scale"

    def __init__(self, weight: float = 0.5) -> None:
        self.weight = weight

    @property
    def weights(self) -> dict[str, float]:
        return {"norm": self.weight, "unused": 0.0}

    def build(self, backbone) -> Scaled:
        return Scaled(backbone.dim)


def backbone(cls=VSE) -> VSE:
    torch.manual_seed(0)
    return cls(vision_config=VISION, text_config=TEXT, dim=16, image_pooling="mean", text_pooling="mean")


def trainer(folder, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def data(scenes) -> ShardData:
    return ShardData(str(scenes), batch_size=8, num_workers=0, augmentation=Augmentation(crop_scale=(1.0, 1.0)))


@pytest.fixture(autouse=True)
def quiet() -> None:
    from itr.commands.quieten import quieten

    quieten()


def test_a_method_is_trained_weighted_clamped_saved_and_loaded(scenes, tmp_path):
    module = RetrievalModule(backbone(), InfoNCE(), [Scale(weight=2.0)])
    runner = trainer(tmp_path)
    runner.fit(module, data(scenes))
    logged = runner.callback_metrics
    assert logged["train/scale/norm"] > 0
    assert logged["train/loss"].item() == pytest.approx(
        (logged["train/objective"] + logged["train/scale/norm"]).item(), rel=1e-5
    )
    assert module.methods["scale"].scale.max() <= 0.9
    runner.save_checkpoint(tmp_path / "m.ckpt")
    opened = RetrievalModule.load_from_checkpoint(tmp_path / "m.ckpt")
    assert torch.equal(opened.methods["scale"].scale, module.methods["scale"].scale)
    assert opened.loss_weights == {"scale": {"norm": 2.0, "unused": 0.0}}
    captions = ["a red circle", "two things"]
    opened.eval()
    module.eval()
    assert torch.equal(opened.encode_text(captions).pooled, module.encode_text(captions).pooled)


def test_an_absent_method_does_not_change_the_baseline():
    module = RetrievalModule(backbone(), InfoNCE())
    assert not list(module.methods.parameters())
    assert all(torch.equal(a, b) for a, b in zip(module.backbone.parameters(), backbone().parameters(), strict=True))


def test_a_method_given_twice_is_refused():
    with pytest.raises(UserError, match="'scale' is given twice"):
        RetrievalModule(backbone(), InfoNCE(), [Scale(), Scale()])


def test_a_backbone_can_score_pairs(scenes, tmp_path):
    module = RetrievalModule(backbone(LateInteraction), InfoNCE())
    runner = trainer(tmp_path)
    runner.fit(module, data(scenes))
    (figures,) = runner.test(module, data(scenes), verbose=False)
    gallery = module.last_gallery
    assert gallery.text.tokens.shape[1] > 1
    with torch.no_grad():
        scores = module.backbone.similarity(gallery.image, gallery.text)
    own = gallery.own_image()
    ranks = (scores >= scores[own, torch.arange(len(own))]).sum(dim=0) - 1
    assert figures["test/t2i_r1"] == pytest.approx(100 * (ranks < 1).float().mean().item())


def test_every_parameter_gets_a_gradient(scenes, tmp_path):
    module = RetrievalModule(backbone(), InfoNCE(), [Scale()])
    runner = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    seen = {}

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.update({n: p.grad is not None for n, p in pl_module.named_parameters() if p.requires_grad})

    runner.callbacks.append(Look())
    runner.fit(module, data(scenes))
    assert seen
    assert all(seen.values()), [name for name, has in seen.items() if not has]


def test_learning_rates_of_towers_and_heads():
    module = RetrievalModule(backbone(), InfoNCE(), [Scale()])
    settings = OptimizerSettings(lr=1.0, tower_lr_factor=0.1, weight_decay=0.5)
    groups = {g["name"]: g for g in parameter_groups(module.named_parameters(), module._is_tower, settings)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "heads": (1.0, 0.5), "heads_no_decay": (1.0, 0.0), "towers": (0.1, 0.5), "towers_no_decay": (0.1, 0.0),
    }  # fmt: skip
    assert sum(len(g["params"]) for g in groups.values()) == len(list(module.parameters()))
    assert any(p is module.objective.temperature.value for p in groups["heads_no_decay"]["params"])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "steps", "constant"])
def test_schedules_warm_up_and_end_at_their_final_rates(schedule):
    settings = OptimizerSettings(schedule=schedule, warmup=0.1, final_lr_factor=0.1, steps=[5.0, 8.0], step_factor=0.5)
    factor = lr_factor(settings, total_steps=100, total_epochs=10)
    assert [factor(step) for step in range(10)] == pytest.approx([(step + 1) / 11 for step in range(10)])
    end = {"cosine": 0.1, "linear": 0.1, "steps": 0.25, "constant": 1.0}[schedule]
    assert factor(100) == pytest.approx(end)
    assert factor(10) == 1.0
    assert all(factor(s) >= factor(s + 1) for s in range(10, 99))
    if schedule == "steps":
        assert (factor(49), factor(50), factor(80)) == (1.0, 0.5, 0.25)


@pytest.mark.slow
def test_a_checkpoint_loads_in_a_separate_program(scenes, tmp_path):
    """Run the example of the README, which imports nothing else: the classes in the checkpoint are known to itr."""
    shown = re.search(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)
    assert shown
    program = shown[1].replace("runs/demo/checkpoints/best.ckpt", save_checkpoint(tmp_path, scenes))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_user_defined_module_is_reported(scenes, tmp_path, monkeypatch):
    made = save_checkpoint(tmp_path, scenes)
    monkeypatch.setenv(IMPORTS, "itr.errors, not_there")
    with pytest.raises(UserError, match=r"^the module not_there, which ITR_IMPORT names, does not exist\. "):
        open_checkpoint(made)
