"""Late interaction on data in the form of COCO's test set: one rsum by every command, on one process and on two."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from itr.cli import main
from itr.protocols.coco import caption_ids, judged
from itr.report.content.embeddings import checkpoint_embeddings
from itr.report.content.measure import measure
from launching import ENOUGH
from third_party import write_tar
from tiny import TINY_VSE, save_checkpoint

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up images and captions under the ids of COCO's 5K test."""
    folder = tmp_path_factory.mktemp("coco")
    rng, owner = np.random.default_rng(0), judged("original", "t2i")
    known = (word.removesuffix("</w>") for word in SimpleTokenizer().encoder if word.endswith("</w>"))
    words = [word for word in known if word.isascii() and word.isalpha()]  # one token each, so that scoring is cheap
    assert len(words) >= len(caption_ids())
    members: dict[str, bytes] = {}
    by_image: dict[int, list[int]] = {}
    for caption in caption_ids().tolist():
        by_image.setdefault(owner[caption][0], []).append(caption)
    next_id = 0
    for number, (image, captions) in enumerate(by_image.items()):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(stream, "PNG")
        meta = {
            "image_id": number,
            "captions": [words.pop() for _ in captions],
            "caption_ids": list(range(next_id, next_id + len(captions))),
            "name": f"{image}.png",
            "source_id": image,
            "coco_caption_ids": captions,
        }
        next_id += len(captions)
        members |= {f"{number:06d}.png": stream.getvalue(), f"{number:06d}.json": json.dumps(meta).encode()}
    (folder / "test").mkdir()
    write_tar(folder / "test" / "000000.tar", members)
    return folder


def options(image_size: int) -> list[str]:
    vision = TINY_VSE[1].replace("image_size: 32", f"image_size: {image_size}")
    return ["--model.backbone=late_interaction.LateInteraction", vision, TINY_VSE[2], "--model.backbone.dim=8"]


def rsum(protocol: str, shards: Path, checkpoint: str, out: Path, key: str) -> float:
    """A figure of `itr evaluate`."""
    common = ["--ckpt_path", checkpoint, "--data", str(shards), "--device", "cpu", "--num_workers", "0"]
    assert main(["evaluate", protocol, "--out", str(out), *common]) == 0
    return float(json.loads(out.read_text())[key])


@pytest.mark.slow
def test_coco_by_late_interaction_is_what_the_test_of_the_run_says(coco, scenes, tmp_path):
    checkpoint = save_checkpoint(tmp_path, scenes, *options(image_size=16))
    by_protocol = rsum("coco", coco, checkpoint, tmp_path / "coco.json", "coco5k/rsum")
    assert by_protocol == rsum_of_test(coco, checkpoint, tmp_path / "run", processes=1) > 0


@pytest.mark.slow
def test_late_interaction_has_one_rsum_by_every_command_and_number_of_processes(scenes, tmp_path):
    checkpoint = save_checkpoint(tmp_path, scenes, *options(image_size=32))
    found = {n: rsum_of_test(scenes, checkpoint, tmp_path / str(n), processes=n) for n in (1, 2)}
    found["transfer"] = rsum("transfer", scenes, checkpoint, tmp_path / "transfer.json", f"transfer/{scenes.name}/rsum")
    gallery = checkpoint_embeddings(Path(checkpoint), scenes, "test", tmp_path / "kept.npz", "cpu")
    found["report"] = measure(gallery, None, 0, torch.device("cpu")).figures["rsum"]
    assert len(set(found.values())) == 1, found


def rsum_of_test(shards: Path, checkpoint: str, folder: Path, processes: int) -> float:
    """The rsum of `itr test` on some processes."""
    where = [f"--data.root={shards}", f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu"]
    more = ["--data.num_workers=0", "--trainer.enable_progress_bar=false", f"--trainer.devices={processes}"]
    more += ["--trainer.strategy=ddp"] if processes > 1 else []
    path = os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, "ITR_IMPORT": "late_interaction"}
    command = [sys.executable, "-m", "itr", "test", f"--ckpt_path={checkpoint}", *where, *more]
    subprocess.run(command, env=variables, check=True, timeout=ENOUGH, capture_output=True)
    return float(json.loads((folder / "metrics.json").read_text())["test/rsum"])
