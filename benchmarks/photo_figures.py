"""Figures of one run of benchmarks/methods_on_photos.py."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from itr.data.shards.schema import Sample, Split
from itr.data.shards.tars import read_tar
from itr.data.towers.choice import Choice
from itr.data.towers.encoding import Decoding, Job, keep_outputs
from itr.embedding.files import gallery_of
from itr.evaluation.gallery import Gallery
from itr.evaluation.ranks import precision_over_all
from itr.module import RetrievalModule
from itr.report.content.compare import recall_sums_by_image
from itr.report.content.measure import measure
from method_runs import itr_command
from photo_data import features, llava_captions

NEIGHBOURS = 10  # images that count as matches of an image


def figures_of_run(
    folder: Path, name: str, split: Split, towers: Path, photos: Path, sts: Path | None
) -> dict[str, Any]:
    """The figures of a run's last checkpoint on a split. `sums` and `counts` [N, 6] are for a paired bootstrap.

    Args:
        folder: of the run.
        name: of the split.
        split: its shards.
        towers: folder for the outputs of the frozen tower, which are the same for all runs.
        photos: folder that may hold captions by LLaVA.
        sts: folder of the STS sets.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    module = RetrievalModule.load_from_checkpoint(checkpoint, weights_only=True).eval()
    samples = [sample for shard in split.shards for sample in read_tar(shard.place, images=False)]
    gallery = embedded(module, samples, name, split, towers)
    measured = measure(gallery, None, 0, torch.device("cpu"))
    sums, counts = recall_sums_by_image(measured)
    found: dict[str, Any] = {key: measured.figures[key] for key in ("rsum", "i2t_r1", "t2i_r1")}
    named = {sample.image_id: sample for sample in samples}
    ordered = [named[number] for number in gallery.image_id.tolist()]
    found["image_image"] = image_to_image(gallery.image.within, ordered)
    found["text_text"] = text_to_text(gallery.text.within, gallery.own_image())
    found |= dense_queries(module, gallery, ordered, llava_captions(photos))
    if sts is not None:
        itr_command("evaluate", "sts", f"--root={sts}", f"--ckpt_path={checkpoint}", f"--out={folder / 'sts.json'}")
        found["sts"] = json.loads((folder / "sts.json").read_text())["sts/avg"]
    return found | {"sums": sums.tolist(), "counts": counts.tolist()}


@torch.inference_mode()
def embedded(module: RetrievalModule, samples: list[Sample], name: str, split: Split, towers: Path) -> Gallery:
    """The embeddings of all images and captions, from kept outputs of the vision tower."""
    quiet = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    job = Job(module.backbone, towers, name, split, Decoding(0, 10**8, 0), quiet)
    rows, _ = keep_outputs(Choice(("image",), "float16"), job)["image"].images([s.image_id for s in samples])
    images = module.embed_image(module.backbone.image_from_output(rows))
    captions = [caption for sample in samples for caption in sample.captions]
    texts = [module.encode_text(captions[start : start + 500]) for start in range(0, len(captions), 500)]
    arrays = {
        "image": images.pooled,
        "image_unimodal": images.within,
        "image_id": torch.tensor([sample.image_id for sample in samples]),
        "text": torch.cat([part.pooled for part in texts]),
        "text_unimodal": torch.cat([part.within for part in texts]),
        "caption_id": torch.tensor([number for sample in samples for number in sample.caption_ids]),
        "caption_image_id": torch.tensor([sample.image_id for sample in samples for _ in sample.captions]),
    }
    return gallery_of(arrays, str(towers))


def figures_of_teachers(folder: Path, name: str, split: Split) -> dict[str, float]:
    """What the teachers reach within a modality, by their features of a split."""
    samples = [sample for shard in split.shards for sample in read_tar(shard.place, images=False)]
    own = torch.tensor([row for row, sample in enumerate(samples) for _ in sample.captions])
    images = features(folder, name, "image", [sample.image_id for sample in samples])
    texts = features(folder, name, "text", [number for sample in samples for number in sample.caption_ids])
    return {
        "image_image": image_to_image(torch.from_numpy(images), samples),
        "text_text": text_to_text(torch.from_numpy(texts), own),
    }


def image_to_image(images: Tensor, samples: list[Sample]) -> float:
    """mAP@R in percent, where the matches of an image are those whose captions share most words with its own.

    Args:
        images: embeddings [N, D].
        samples: the captions of each image.
    """
    truth = shared_words([" ".join(sample.captions) for sample in samples]).fill_diagonal_(-1)
    matches = torch.zeros_like(truth, dtype=torch.bool)
    matches.scatter_(1, truth.topk(NEIGHBOURS, dim=1).indices, True)
    rows = normalize(images.float(), dim=1)
    return 100 * precision_over_all((rows @ rows.T).fill_diagonal_(-2), matches)[0].mean().item()


def text_to_text(texts: Tensor, own: Tensor) -> float:
    """R@1 in percent of captions [M, D] that search the others, where those of the same image [M] are right."""
    rows = normalize(texts.float(), dim=1)
    first = (rows @ rows.T).fill_diagonal_(-2).argmax(dim=1)
    return 100 * (own[first] == own).double().mean().item()


def dense_queries(
    module: RetrievalModule, gallery: Gallery, samples: list[Sample], captions: dict[str, str]
) -> dict[str, float]:
    """R@10 in percent of LLaVA's captions that search all images of the split; nothing if no image has one."""
    named = {Path(sample.name).name: row for row, sample in enumerate(samples)}
    queries = [(named[name], text) for name, text in captions.items() if name in named]
    if not queries:
        return {}
    with torch.inference_mode():
        texts = module.encode_text([text for _, text in queries])
    scores = texts.unit @ gallery.image.unit.T
    right = scores.gather(1, torch.tensor([[row] for row, _ in queries]))
    return {"llava": 100 * ((scores >= right).sum(dim=1) <= 10).double().mean().item()}


def shared_words(texts: list[str]) -> Tensor:
    """Cosines [N, N] of the texts' words, weighted by how rare they are (tf-idf)."""
    counted = [Counter(re.findall(r"[a-z]+", text.lower())) for text in texts]
    held = Counter(word for words in counted for word in words)
    column = {word: number for number, word in enumerate(held)}
    rows = torch.zeros(len(texts), len(column))
    for row, words in enumerate(counted):
        for word, count in words.items():
            rows[row, column[word]] = (1 + math.log(count)) * math.log(len(texts) / held[word])
    rows = normalize(rows, dim=1)
    return rows @ rows.T
