"""Load frozen teachers of one modality by name, folder or file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from itr.backbones.base import ImageSpec
from itr.backbones.clip import CLIP, OPENAI_MEAN, OPENAI_STD
from itr.backbones.tokenizers import HFTokenizer, load_tokenizer
from itr.backbones.towers import caption_limit, make_tower, pretrained_preprocessing, timm_preprocessing
from itr.backbones.towers.building import token_features
from itr.backbones.towers.clip_features import image_features
from itr.backbones.towers.configs import suggest_name
from itr.errors import UserError
from itr.teachers.base import Encoder, Modality, Precision, Teacher
from itr.teachers.unicom import load_unicom
from itr.types import Tokens
from itr.weights.dependencies import used_names
from itr.weights.hub import hub_or_cache, loading_failure, ways_out
from itr.weights.packages import is_packaged, local_source
from itr.weights.pretrained import checked_state_loads, load_pretrained

TeacherOutput = Literal["pooled", "tokens"]
PROBES = ["a word", "", " Two  Words,\nÉclair 42!", "very long " * 600]  # captions for comparing tokenizers


def load_teacher(
    modality: Modality, name: str, output: TeacherOutput = "pooled", device: str = "cpu", precision: Precision = "32"
) -> Teacher:
    """Load a teacher.

    Args:
        modality: images or captions; for dense captions, see `itr.passes.first_stage`.
        name: for text, a folder or name of sentence-transformers or transformers; for images, a folder or name of
            transformers, a name of timm (or `timm:NAME`, `timm:local-dir:FOLDER`), `open_clip:MODEL/TAG`,
            `open_clip:MODEL/FILE`, `open_clip:local-dir:FOLDER`, or `unicom:FILE`; for both, `offline/NAME`, see
            `itr.weights.packages`.
        output: `pooled`, or `tokens` for all tokens of an image, concatenated.
        device: device to run on.
        precision: arithmetic precision.

    Raises:
        UserError: it could not be loaded.
    """
    if modality == "text":
        if output != "pooled":
            raise UserError("--output tokens is for images: captions differ in length")
        encoder = _sentence_transformer(name, device) if is_sentence_transformer(name) else _text(name)
        return Teacher(encoder, torch.device(device), precision)
    kind, colon, rest = name.partition(":")
    loaders = {"unicom": _unicom, "open_clip": _open_clip, "timm": _timm}
    if colon and kind in loaders:
        encoder = loaders[kind](rest, output)
    elif not Path(name).is_dir() and _is_timm(name):
        encoder = _timm(name, output)
    else:
        encoder = _vision(name, output)
    return Teacher(encoder, torch.device(device), precision)


def is_sentence_transformer(name: str) -> bool:
    """Whether a folder or hub repository has the module list that sentence-transformers writes."""
    if is_packaged(name):
        return True
    if Path(name).is_dir() or name.startswith(("/", ".")):
        return (Path(name) / "modules.json").is_file()
    if name.startswith("sentence-transformers/"):
        return True
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(name, "modules.json")
    if known is not None:  # a path, or the marker for a file that the repository does not have
        return isinstance(known, str)
    try:
        with hub_or_cache(name):
            return bool(hf_hub_download(name, "modules.json"))
    except Exception:  # no such file, or no network: loading the model reports it
        return False


def _sentence_transformer(name: str, device: str) -> Encoder:
    if find_spec("sentence_transformers") is None:
        raise UserError(f"teacher {name} needs sentence-transformers: pip install sentence-transformers")
    from sentence_transformers import SentenceTransformer

    source = local_source(name, "text")

    def load(**options: Any) -> Any:
        return SentenceTransformer(source, device=device, model_kwargs=options)

    def run_probe(module: Any, where: torch.device) -> Tensor:
        ids = torch.ones(1, 3, dtype=torch.int64, device=where)
        embedded: Tensor = module({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"]
        return embedded

    try:
        with hub_or_cache(source):
            model: Any = load_pretrained(load, name, "the teacher", run_probe)
    except UserError:
        raise
    except Exception as error:  # the hub, its clients and weight readers raise many unrelated types
        raise _not_loaded(source, "text", error) from error

    tokenizer = _tokenizer_like(name, model)
    if tokenizer is not None:
        return Encoder(model, lambda tokens: _sentences(model, tokens), tokenizer=tokenizer)

    def run(captions: Sequence[str]) -> Tensor:
        options: dict[str, Any] = {"batch_size": len(captions), "show_progress_bar": False}
        encoded: Tensor = model.encode(list(captions), convert_to_tensor=True, **options)
        return encoded

    return Encoder(model, run)


def _sentences(model: Any, tokens: Tokens) -> Tensor:
    embedded: Tensor = model({"input_ids": tokens.ids, "attention_mask": tokens.mask.long()})["sentence_embedding"]
    return embedded


def _tokenizer_like(name: str, model: Any) -> HFTokenizer | None:
    """A tokenizer for the workers with the same tokens as a sentence-transformers model; None if there is none."""
    if model.default_prompt_name is not None:
        return None
    try:
        tokenizer = load_tokenizer(name)
        tokenizer.limit(int(model.max_seq_length))
        ours, theirs = tokenizer(PROBES), model.preprocess(PROBES)
        same = torch.equal(ours.ids, theirs["input_ids"]) and torch.equal(ours.mask, theirs["attention_mask"].bool())
        plain = not any(theirs[key].any() for key in theirs.keys() & {"token_type_ids"})
    except Exception:  # the model is not a plain transformer
        return None
    known = {"input_ids", "attention_mask", "token_type_ids", "modality"}
    return tokenizer if same and plain and theirs.keys() <= known else None


def _text(name: str) -> Encoder:
    tower, tokenizer = _tower("text", name), load_tokenizer(name)
    tokenizer.limit(caption_limit(tower, tokenizer.max_length, None))

    def run(tokens: Tokens) -> Tensor:
        hidden = token_features(tower(input_ids=tokens.ids, attention_mask=tokens.mask.long()))
        weight = tokens.mask.unsqueeze(-1).to(hidden.dtype)  # [C, L, 1]
        return (hidden * weight).sum(1) / weight.sum(1)

    return Encoder(tower, run, tokenizer=tokenizer)


def _vision(name: str, output: TeacherOutput) -> Encoder:
    tower = _tower("vision", name, pooled=output == "pooled")
    spec, resize = pretrained_preprocessing(name, tower)

    def run(image: Tensor) -> Tensor:
        found: Any = tower(pixel_values=image)
        tokens = token_features(found)
        if output == "tokens":
            return tokens.flatten(1)
        pooled: Tensor | None = getattr(found, "pooler_output", None)
        return tokens.mean(1) if pooled is None else pooled.flatten(1)

    return Encoder(tower, run, spec, resize)


def _tower(modality: Literal["vision", "text"], name: str, pooled: bool = False) -> nn.Module:
    source = local_source(name, modality)
    try:
        return make_tower(modality, name, None, pooled)
    except UserError as error:
        if error.__cause__ is None or Path(source).is_dir():  # its message is complete
            raise
        raise _not_loaded(name, modality, error.__cause__) from error


def _not_loaded(name: str, modality: Literal["vision", "text"], error: BaseException) -> UserError:
    return UserError(f"could not load teacher {name}: {loading_failure(name, error)}. {ways_out(modality)}")


def _is_timm(name: str) -> bool:
    import timm

    return "/" not in name and bool(timm.is_model(name.partition(".")[0]))


def _timm(name: str, output: TeacherOutput) -> Encoder:
    import timm
    import timm.data

    if ":" not in name and not _is_timm(name):
        raise UserError(f"timm has no model {name}{suggest_name(name, timm.list_models())}")

    library: Any = timm.data  # it has no explicit exports

    def used(module: Any) -> set[str]:
        size = library.resolve_model_data_config(module)["input_size"]
        return used_names(module, lambda model, where: _timm_output(model, torch.zeros(1, *size, device=where), output))

    try:
        with checked_state_loads(name, "the teacher", used), hub_or_cache(name.removeprefix("local-dir:")):
            model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except UserError:
        raise
    except Exception as error:  # as above
        raise _not_loaded(name.removeprefix("local-dir:"), "vision", error) from error
    spec, resize = timm_preprocessing(library.resolve_model_data_config(model))

    return Encoder(model, lambda image: _timm_output(model, image, output), spec, resize)


def _timm_output(model: Any, image: Tensor, output: TeacherOutput) -> Tensor:
    found: Tensor = model.forward_features(image) if output == "tokens" else model(image)
    return found.flatten(1)


def open_clip_backbone(name: str) -> CLIP:
    """The model of open_clip that MODEL/TAG, MODEL/FILE, local-dir:FOLDER or hf-hub:ORG/NAME names.

    Raises:
        UserError: it could not be loaded, or the name has no weights.
    """
    model, tag = (name, "") if name.startswith(("local-dir:", "hf-hub:")) else name.partition("/")[::2]
    if not tag and ":" not in name:
        raise UserError(f"open_clip:{name} has no weights; use open_clip:MODEL/TAG, such as open_clip:ViT-B-32/openai")
    return CLIP(model=model, pretrained=tag or None)


def _open_clip(name: str, output: TeacherOutput) -> Encoder:
    clip = open_clip_backbone(name)

    def run(image: Tensor) -> Tensor:
        encoded = image_features(clip.model.visual, image)
        return encoded.tokens.flatten(1) if output == "tokens" else encoded.pooled

    return Encoder(clip, run, clip.image_spec)


def _unicom(path: str, output: TeacherOutput) -> Encoder:
    model = load_unicom(path)
    spec = ImageSpec(size=model.image_size, mean=OPENAI_MEAN, std=OPENAI_STD, to_rgb="after_resize", crop_offset="even")
    return Encoder(model, model.forward_features if output == "tokens" else model, spec)
