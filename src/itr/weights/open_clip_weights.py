"""Copy weights into a model of open_clip, and find out how the model of a file has to be built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip as untyped_open_clip
from open_clip import convert
from open_clip import model as clip_model
from torch import Tensor

from itr.commands.process import is_first_process
from itr.errors import UserError, quoted
from itr.weights.matching import fill, without_wrappers
from itr.weights.pretrained import announce
from itr.weights.reading import Weights

log = logging.getLogger(__name__)
open_clip: Any = untyped_open_clip  # its functions are untyped, and the package has no explicit exports
conversions: Any = convert
models: Any = clip_model

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_SCALES = ("logit_scale", "logit_bias")
_BIG_VISION = (".npz", ".npy")


def fill_clip(model: Any, weights: Weights, used: Callable[[], Collection[str]]) -> None:
    """Copy weights into a model of open_clip; a logit scale or bias that they lack becomes None.

    Args:
        model: a CLIP, CustomTextCLIP or CoCa.
        weights: in the names of open_clip, OpenAI or MobileCLIP; positions of another number are interpolated.
        used: gives the names that the embeddings depend on; the others may be missing.

    Raises:
        UserError: they do not fit.
    """
    if Path(weights.source).suffix in _BIG_VISION:
        return _fill_big_vision(model, weights.source)
    try:
        tensors = _converted(model, weights.tensors)
    except Exception as error:  # the conversions expect the shapes of published weights
        raise UserError(f"the weights in {weights.source} do not match the model: {quoted(error)}") from error
    kept = fill(model, tensors, weights.source, "the model", used)
    for name in set(_SCALES) & set(kept.missing):
        setattr(model, name, None)
    announce(weights.source, "CLIP", len(tensors), list(kept.missing), [])
    return None


def _fill_big_vision(model: Any, source: str) -> None:
    """The arrays that Google published for SigLIP, which open_clip places one by one."""
    try:
        open_clip.load_checkpoint(model, source, strict=True, weights_only=True)
    except Exception as error:  # a wrong file raises anything from KeyError to a wrong shape
        raise UserError(f"the weights in {source} do not match the model: {quoted(error)}") from error


def _converted(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under today's names and with as many positions as the model has, as open_clip converts them."""
    own = model.state_dict()
    tensors: dict[str, Tensor] = conversions.convert_state_dict(model, without_wrappers(weights, own))
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = models.convert_to_custom_text_state_dict(tensors)
    for name in set(_SCALES) & tensors.keys() & own.keys():
        if tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(own[name].shape)
    if "text.transformer.embeddings.position_ids" not in own:  # older releases of transformers stored it
        tensors.pop("text.transformer.embeddings.position_ids", None)
    models.resize_pos_embed(tensors, model)
    models.resize_text_pos_embed(tensors, model)
    return tensors


@dataclass(frozen=True)
class FileProperties:
    """How the model of a local file is built, which the file itself does not say.

    Attributes:
        quick_gelu: whether it was trained with the quick approximation of GELU.
        preprocess: mean, std, interpolation and resize_mode, as far as they are known.
        reasons: what this rests on, for a message.
        doubts: preprocessing that published weights of the model disagree about, and that was assumed.
    """

    quick_gelu: bool
    preprocess: dict[str, Any]
    reasons: str
    doubts: tuple[str, ...] = ()

    def announce(self, path: str, name: str) -> None:
        """Log how a file is understood, and what has been assumed."""
        if not is_first_process():
            return
        activation = "QuickGELU" if self.quick_gelu else "GELU"
        values = ", ".join(f"{key} {self.preprocess[key]}" for key in PREPROCESSING if key in self.preprocess)
        log.info("%s as %s: %s, %s (%s)", path, name, activation, values or "OpenAI's mean and std", self.reasons)
        if self.doubts:
            log.warning(
                "published weights of %s differ in %s, and %s does not say which it needs: if the values above are "
                "wrong, set image_mean, image_std, interpolation and resize",
                name, ", ".join(self.doubts), path,
            )  # fmt: skip


def properties_of(
    weights: Weights, name: str, config: dict[str, Any], quick_gelu: bool | None, given: Iterable[str] = ()
) -> FileProperties:
    """The properties of a local file: those of the published weights of the model that it is or may be.

    Args:
        weights: the file.
        name: the model's name in open_clip.
        config: its config.
        quick_gelu: what the user says.
        given: preprocessing that the user has set.

    Raises:
        UserError: published weights differ in their activation, and nothing shows which this file has.
    """
    records = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    tag, why = _tag_of(weights, records)
    if tag is not None:
        quick = _activation(config, records[tag]) if quick_gelu is None else quick_gelu
        return FileProperties(quick, records[tag], f"taken from the tag {tag}: {why}")
    if quick_gelu is None and weights.from_openai:
        quick_gelu, why = True, "OpenAI trained all models so"
    activations = {_activation(config, record) for record in records.values()} or {_activation(config, {})}
    if quick_gelu is None:
        if len(activations) > 1:
            raise UserError(_ambiguous(weights.source, name, config, records))
        quick_gelu, why = next(iter(activations)), "as in all published weights" if records else "as in the config"
    fitting = {t: r for t, r in records.items() if _activation(config, r) == quick_gelu} or records
    first = next(iter(fitting), None)
    doubts = [key for key in PREPROCESSING if key not in given and len({str(r.get(key)) for r in fitting.values()}) > 1]
    reasons = f"activation: {why or 'as set'}; preprocessing: "
    reasons += f"that of the tag {first}" if first else "OpenAI's"
    return FileProperties(quick_gelu, fitting[first] if first else {}, reasons, tuple(doubts))


def _activation(config: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether a model has the quick GELU: a record only says so if its config doesn't."""
    return bool(config.get("quick_gelu") or record.get("quick_gelu"))


def _tag_of(weights: Weights, records: dict[str, dict[str, Any]]) -> tuple[str | None, str]:
    """The tag of the model under which a file was published, and how it is recognized."""
    path = Path(weights.source)
    if weights.from_openai and "openai" in records:
        return "openai", "the file is one of OpenAI's archives"
    named = [tag for tag, record in records.items() if record.get("url", "").rpartition("/")[2] == path.name]
    if len(named) == 1:
        return named[0], f"it was published as {path.name}"
    folders = "/".join(path.absolute().parts).replace("models--", "").replace("--", "/")
    hubs = {tag: record.get("hf_hub", "").rpartition("/")[::2] for tag, record in records.items()}
    found = [tag for tag, (hub, file) in hubs.items() if hub and f"/{hub}/" in folders and file in ("", path.name)]
    return (found[0], f"its folder is that of {hubs[found[0]][0]}") if len(found) == 1 else (None, "")


def _ambiguous(source: str, name: str, config: dict[str, Any], records: dict[str, dict[str, Any]]) -> str:
    quick = [tag for tag, record in records.items() if _activation(config, record)]
    other = [tag for tag in records if tag not in quick]
    return (
        f"pretrained={source!r}: a file does not say with which activation it was trained, and the published "
        f"weights of {name} differ: QuickGELU for {_some(quick)}, GELU for {_some(other)}. Set quick_gelu to true or "
        f"false (--model.backbone.quick_gelu); for an encoder, use open_clip:{name}-quickgelu/FILE, or "
        "open_clip:local-dir:FOLDER with an open_clip_config.json"
    )


def _some(tags: list[str]) -> str:
    return ", ".join(tags[:3]) + (" and others" if len(tags) > 3 else "")
