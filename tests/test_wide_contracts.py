"""Commands work with backbones and methods that need more than pixels, pooled embeddings and their cosine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import itr.data.loading.batches
from itr.checkpoints import open_checkpoint
from itr.cli import main
from itr.evaluation.rerank import Reranked
from itr.report.content.embeddings import checkpoint_embeddings
from itr.report.content.measure import measure
from late_interaction import LateInteraction
from tiny import TINY_VSE
from tiny_teachers import save_image_teacher
from wide import RegionBackbone, TwoStage, Uncertain, UncertainModule, npz

FAST = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def tiny(backbone: type) -> list[str]:
    """The options of a tiny VSE for a subclass of VSE."""
    return [f"--model.backbone={backbone.__module__}.{backbone.__name__}", *TINY_VSE[1:]]


def run(verb: str, folder: Path, shards: Path, *options: str) -> int:
    return main([verb, f"--data.root={shards}", f"--trainer.default_root_dir={folder}", *FAST, *options])


def trained(folder: Path, shards: Path, *options: str) -> dict[str, float]:
    """The metrics of `itr test` after a short `itr fit`."""
    data = [option for option in options if option.startswith("--data.")]
    assert run("fit", folder, shards, "--data.batch_size=8", "--trainer.max_epochs=2", *options) == 0
    assert run("test", folder, shards, "--ckpt_path=best", *data) == 0
    return dict(json.loads((folder / "metrics.json").read_text()))


def transferred(folder: Path, shards: Path, *options: str) -> dict[str, float]:
    """The metrics of `itr evaluate transfer` with the best checkpoint."""
    out, checkpoint = folder / "transfer.json", str(folder / "checkpoints" / "best.ckpt")
    source = [] if "--embeddings" in options else ["--data", str(shards)]
    where = ["--out", str(out), "--ckpt_path", checkpoint, "--device", "cpu", "--num_workers", "0"]
    assert main(["evaluate", "transfer", *where, *source, *options]) == 0
    return {key.rpartition("/")[2]: value for key, value in json.loads(out.read_text()).items()}


def same_figures(test: dict[str, float], other: dict[str, float]) -> None:
    names = [f"{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr")]
    assert {name: test[f"test/{name}"] for name in (*names, "rsum")} == {name: other[name] for name in (*names, "rsum")}


def embedded(folder: Path, shards: Path, *options: str) -> Path:
    """The file that `itr embed` writes."""
    checkpoint = str(folder / "checkpoints" / "best.ckpt")
    out = ["--out", str(folder / "e.npz"), "--device", "cpu", "--num_workers", "0"]
    assert main(["embed", "--ckpt_path", checkpoint, "--data", str(shards), *out, *options]) == 0
    return folder / "e.npz"


def reported(folder: Path, shards: Path) -> dict[str, float]:
    """The metrics of `itr report`, from new embeddings and from cached ones."""
    best = folder / "checkpoints" / "best.ckpt"
    found = [
        measure(checkpoint_embeddings(best, shards, "test", folder / "kept.npz", "cpu"), None, 3, torch.device("cpu"))
        for _ in range(2)
    ]
    assert found[0].figures == found[1].figures
    return found[0].figures


@pytest.mark.slow
def test_late_interaction_has_the_same_metrics_everywhere(scenes, tmp_path, capsys):
    test = trained(tmp_path, scenes, *tiny(LateInteraction))
    assert "LateInteraction, weights" in test["about"]["scored_by"]
    same_figures(test, transferred(tmp_path, scenes))
    same_figures(test, reported(tmp_path, scenes))
    file = embedded(tmp_path, scenes)
    arrays = npz(file)
    assert arrays["image_tokens"].shape[0] == len(arrays["image"])
    assert str(arrays["scored_by"]) == test["about"]["scored_by"]
    coco = ["evaluate", "coco", "--out", str(tmp_path / "c.json"), "--embeddings", str(file)]
    assert main(coco) == 1
    assert "not by cosine" in capsys.readouterr().err
    np.savez(tmp_path / "bare.npz", **{name: a for name, a in arrays.items() if not name.endswith(("tokens", "mask"))})
    best = str(tmp_path / "checkpoints" / "best.ckpt")
    assert main([*coco[:-1], str(tmp_path / "bare.npz"), "--ckpt_path", best]) == 1
    assert "no token-level features" in capsys.readouterr().err
    assert main([*coco[:-1], str(tmp_path / "bare.npz")]) == 1


@pytest.mark.slow
def test_a_second_stage_affects_all_metrics(scenes, tmp_path):
    test = trained(tmp_path, scenes, *tiny(TwoStage))
    same_figures(test, transferred(tmp_path, scenes))
    same_figures(test, reported(tmp_path, scenes))
    gallery = checkpoint_embeddings(
        tmp_path / "checkpoints" / "best.ckpt", scenes, "test", tmp_path / "kept.npz", "cpu"
    )
    score = gallery.score()
    assert isinstance(score, Reranked)
    shortlist, rescored = score.shortlist("t2i")
    assert shortlist.shape == rescored.shape == (len(gallery.text_id), 3)
    order = score.candidates("t2i", slice(0, 5)).argsort(dim=1, descending=True)[:, :3]
    assert torch.equal(order.sort(dim=1).values, shortlist[:5].sort(dim=1).values)
    plain = score.first.candidates("t2i", slice(0, len(gallery.text_id))).argsort(dim=1, descending=True)[:, :3]
    assert not torch.equal(score.candidates("t2i", slice(0, len(plain))).argsort(dim=1, descending=True)[:, :3], plain)


@pytest.mark.slow
def test_a_method_changes_the_score_and_adds_named_embeddings(scenes, tmp_path, monkeypatch):
    seen: list[float] = []
    losses = UncertainModule.losses
    monkeypatch.setattr(
        UncertainModule, "losses", lambda self, pairs: seen.append(pairs.progress) or losses(self, pairs)
    )
    uncertain = f"--model.methods+={Uncertain.__module__}.Uncertain"
    test = trained(tmp_path, scenes, *TINY_VSE, uncertain, "--model.large_batch.loss_chunk=3")
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert 1 < seen[-1] < 2
    same_figures(test, transferred(tmp_path, scenes))
    same_figures(test, reported(tmp_path, scenes))
    arrays = npz(embedded(tmp_path, scenes))
    assert arrays["image_log_variance"].shape == (17, 32)
    assert arrays["text_views"].shape == (len(arrays["text"]), 2, 32)
    assert "UncertainModule" in str(arrays["scored_by"])


@pytest.mark.slow
def test_a_backbone_of_region_features_decodes_no_pixels(scenes, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(itr.data.loading.batches, "decode_for", refuse)
    test = trained(tmp_path, scenes, f"--model.backbone={RegionBackbone.__module__}.RegionBackbone")
    same_figures(test, transferred(tmp_path, scenes))
    assert npz(embedded(tmp_path, scenes))["image"].shape == (17, 16)


@pytest.mark.slow
def test_a_backbone_takes_the_stored_output_of_a_tower(scenes, tmp_path, capsys):
    teacher = save_image_teacher(tmp_path / "teacher")
    features = ["--data", str(scenes), "--modality", "image", "--model", teacher, "--out", str(tmp_path / "features")]
    where = ["--splits", "train,val,test", "--num_workers", "0", "--device", "cpu", "--output", "tokens"]
    stored = "--model.backbone=stored_tower.StoredTower"
    assert run("fit", tmp_path / "run", scenes, stored, "--data.batch_size=8") == 1
    assert "itr features" in capsys.readouterr().err
    assert main(["features", *features, *where]) in (0, None)
    test = trained(tmp_path / "run", scenes, stored, f"--data.features={tmp_path / 'features'}")
    same_figures(test, transferred(tmp_path / "run", scenes, "--features", str(tmp_path / "features")))


@pytest.mark.slow
def test_a_model_of_features_refuses_image_files(scenes, tmp_path, capsys):
    assert (
        run(
            "fit",
            tmp_path,
            scenes,
            "--model.backbone=wide.RegionBackbone",
            "--data.batch_size=8",
            "--trainer.max_epochs=1",
        )
        == 0
    )
    best = str(tmp_path / "checkpoints" / "best.ckpt")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"never read")
    assert (
        main(["embed", "--ckpt_path", best, "--images", str(tmp_path / "images"), "--out", str(tmp_path / "e.npz")])
        == 1
    )
    assert "'regions' instead of pixels" in capsys.readouterr().err
    assert open_checkpoint(best).backbone.image_field == "regions"
