"""Models by name: checkpoints of itr, pairs of towers of other libraries, and encoders of one modality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from itr.backbones import Backbone, Dual
from itr.backbones.dual.families import FAMILIES
from itr.checkpoints import open_identified
from itr.commands.inputs import RUN_FILES, check_at_least
from itr.distributed import choose_device
from itr.embedding.encoder import Embedder, module_embedder
from itr.embedding.files import pooled_only
from itr.errors import UserError
from itr.evaluation.provenance import encoder_name
from itr.files.digests import weights_identity
from itr.objectives import InfoNCE
from itr.teachers.load import load_teacher, open_clip_backbone
from itr.types import Encoded
from itr.weights.hub import hub_or_cache
from itr.weights.packages import is_packaged

if TYPE_CHECKING:
    from itr.module import RetrievalModule

Side = Literal["image", "text"]
PAIR = "open_clip:"


def open_model(name: str) -> tuple[RetrievalModule, dict[str, Any]]:
    """A model of images and captions in evaluation mode, and its identity for files of figures.

    Args:
        name: a checkpoint of `itr`; a run folder (its `best.ckpt`, else `last.ckpt`); `open_clip:MODEL/TAG`,
            `open_clip:MODEL/FILE`, `open_clip:local-dir:FOLDER` or `open_clip:hf-hub:ORG/NAME`; or a folder or name of
            a dual encoder of transformers, see `itr.backbones.Dual`.

    Raises:
        UserError: it could not be opened, or embeds only one of the two.
    """
    if name.startswith(PAIR):
        return _published(open_clip_backbone(name.removeprefix(PAIR)), name)
    if (checkpoint := _checkpoint(name)) is not None:
        return open_identified(checkpoint)
    if _is_dual(name):
        return _published(Dual(model=name), name)
    raise UserError(
        f"{name} is neither a checkpoint of itr, nor a run folder, nor {PAIR}MODEL/TAG, nor a dual encoder of "
        "transformers that could be read here; only these embed both images and captions. An encoder of one of them "
        "can embed --images or --texts, and `itr features` runs it over shards"
    )


def open_embedder(name: str, needs: Sequence[Side], device: str = "auto", **settings: Any) -> Embedder:
    """An embedder that uses a model by its name.

    Args:
        name: a name of `open_model`, or an encoder of one modality as in `itr.teachers.load.load_teacher`.
        needs: what it has to embed.
        device: as for `itr.distributed.choose_device`.
        settings: further attributes of `Embedder`.

    Raises:
        UserError: it could not be loaded, or does not embed all that is needed.
    """
    check_at_least(1, batch_size=settings.get("batch_size", 1))
    if len(set(needs)) > 1 or name.startswith(PAIR) or _checkpoint(name) is not None or _is_dual(name):
        module, identity = open_model(name)
        return module_embedder(module, device, model=identity, **settings)
    return teacher_embedder(needs[0], name, device, **settings)


def teacher_embedder(modality: Side, name: str, device: str = "auto", **settings: Any) -> Embedder:
    """An embedder that uses an encoder of one modality, named as in `itr.teachers.load.load_teacher`."""
    where = choose_device(device)
    teacher = load_teacher(modality, name, device=where, precision=settings.get("precision", "32"))

    def encode(inputs: Tensor | Sequence[str]) -> Encoded:
        return pooled_only(teacher.features(inputs))

    model = {"encoder": encoder_name(name), "weights": weights_identity(teacher.encoder.module.state_dict())}
    if modality == "text":
        return Embedder(torch.device(where), encode_text=encode, model=model, **settings)
    return Embedder(torch.device(where), encode_image=encode, transform=teacher.transform, model=model, **settings)


def _checkpoint(name: str) -> str | None:
    """The checkpoint that a name gives; None if it is the name of something else."""
    path = Path(name).expanduser()
    for file in RUN_FILES:
        if (path / "checkpoints" / file).is_file():
            return str(path / "checkpoints" / file)
    return name if path.is_file() or path.suffix == ".ckpt" else None


def _is_dual(name: str) -> bool:
    """Whether a folder or a name on the hub is a dual encoder of transformers; False if it could not be read."""
    if is_packaged(name) or ":" in name:
        return False
    from transformers import AutoConfig

    try:
        with hub_or_cache(name):
            model_type: str = AutoConfig.from_pretrained(name).model_type
    except Exception:  # the hub and its clients raise many unrelated types; loading the model reports the reason
        return False
    return model_type in FAMILIES


def _published(backbone: Backbone, name: str) -> tuple[RetrievalModule, dict[str, Any]]:
    """A published model as it is; its objective is never used."""
    from itr.module import RetrievalModule

    identity = {"encoder": encoder_name(name), "weights": weights_identity(backbone.state_dict())}
    return RetrievalModule(backbone, InfoNCE()).eval(), identity
