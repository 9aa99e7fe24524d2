"""Frozen teachers of one modality, by name, folder or file: pictures or captions in, one vector each out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from itr.backbones.base import ImageSpec, Tokenizer
from itr.backbones.clip import CLIP, OPENAI_MEAN, OPENAI_STD
from itr.backbones.clip_towers import image_features
from itr.backbones.tokenizers import HFTokenizer, first_line, load_tokenizer
from itr.backbones.towers import make_tower, near, own_size, pretrained_image_spec, token_features, word_limit
from itr.data.features import Modality
from itr.data.images import EvaluationTransform
from itr.data.unicom import load_unicom
from itr.errors import UserError
from itr.types import Tokens

Output = Literal["pooled", "tokens"]
Precision = Literal["32", "bf16", "16"]
Inputs = Tensor | Tokens | Sequence[str]
PART = {"cpu": 16, "cuda": 256}  # captions of about the same length that a teacher embeds together
PROBES = ["a word", "", " Two  Words,\nÉclair 42!", "very long " * 600]  # on which tokenizers are compared
WAY_OUT = "Give the folder of a downloaded model, or run once with a network."


class PictureTransform:
    """The teacher's own preprocessing up to uint8: resize, then crop the centre.

    Args:
        spec: what the teacher takes.
        resize: short side before the crop, where it is larger than the picture that the teacher takes.
    """

    def __init__(self, spec: ImageSpec, resize: int | None = None) -> None:
        self.size = spec.size
        self.resize = EvaluationTransform(replace(spec, size=max(resize or spec.size, spec.size)))

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] to [3, size, size], uint8."""
        cropped: Tensor = TF.center_crop(self.resize(image), [self.size, self.size])
        return cropped


@dataclass
class Encoder:
    """What a loader finds.

    Attributes:
        module: its weights.
        run: turns normalised pictures [I, 3, H, H] or captions into features [n, D]; captions as tokens on its device
            where there is a tokenizer.
        spec: picture format; None for text.
        resize: short side before the crop.
        weights: identity of its weights, where it is a checkpoint of ours.
        tokenizer: of captions, for the workers; None for pictures, and where the module has a way of its own.
    """

    module: nn.Module
    run: Callable[[Any], Tensor]
    spec: ImageSpec | None = None
    resize: int | None = None
    weights: str = ""
    tokenizer: Tokenizer | None = None


class Teacher:
    """A frozen encoder on a device.

    Attributes:
        width: D of a feature.
        weights: identity of its weights, where it is a checkpoint of ours.
        transform: preprocessing of a picture, for the workers; None for text.
        tokenizer: of captions, for the workers; None for pictures, and where the encoder has a way of its own.
    """

    def __init__(self, encoder: Encoder, device: torch.device, precision: Precision = "32") -> None:
        self.encoder, self.device, self.weights = encoder, device, encoder.weights
        self.tokenizer = encoder.tokenizer
        self.dtype = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[precision]
        encoder.module.to(device).eval().requires_grad_(False)
        spec = encoder.spec
        self.transform: PictureTransform | None = None
        probe: Tensor | list[str] = ["a word"]
        if spec is not None:
            self.transform = PictureTransform(spec, encoder.resize)
            self.mean, self.std = (255 * torch.tensor(v, device=device).view(3, 1, 1) for v in (spec.mean, spec.std))
            probe = torch.zeros(1, 3, spec.size, spec.size, dtype=torch.uint8)
        try:
            self.width = self.encode(probe).shape[1]
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(
                f"the teacher can't encode a picture or a caption of its size: {first_line(error)}"
            ) from None

    def encode(self, inputs: Inputs) -> Tensor:
        """Features [n, D], float32, on the CPU, of pictures [n, 3, H, H], uint8, or of captions."""
        return self.features(inputs).cpu()

    def features(self, inputs: Inputs) -> Tensor:
        """The same on the teacher's device. Captions may be what `tokenizer` made of them, on the host."""
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            if isinstance(inputs, Tensor):
                pixels = inputs.to(self.device, non_blocking=True).float()  # bytes go to the device, not floats
                rows = self.encoder.run((pixels - self.mean) / self.std)
            elif isinstance(inputs, Tokens):
                rows = self._by_length(inputs)
            elif self.tokenizer is not None:
                rows = self._by_length(self.tokenizer(inputs))
            else:
                rows = self.encoder.run(inputs)
        return rows.to(torch.float32, copy=True)  # what inference mode made can't take part in a loss

    def _by_length(self, tokens: Tokens) -> Tensor:
        """Embed captions, those of about the same length together, so that little padding is paid for."""
        size = PART.get(self.device.type, PART["cpu"])
        if getattr(self.tokenizer, "full_length", False):  # its padding takes part
            stretches = [(torch.arange(len(tokens)), tokens)]
        else:
            stretches = list(by_length(tokens, size))
        order, parts = [], []
        for index, part in stretches:
            ids, mask = (tensor.to(self.device, non_blocking=True) for tensor in (part.ids, part.mask))
            order.append(index)
            parts.append(self.encoder.run(Tokens(ids, mask)))
        return torch.cat(parts)[torch.cat(order).argsort().to(self.device, non_blocking=True)]

    def settle(self, compiled: bool = False) -> None:
        """Make ready for many calls, with the same results.

        Linear layers keep their weights in the precision that autocast gives them, instead of being cast every time.

        Args:
            compiled: compile the module, for shapes that change; results are then equal up to rounding.
        """
        for layer in self.encoder.module.modules() if self.dtype is not None else ():
            if isinstance(layer, nn.Linear):
                layer.to(self.dtype)
        if compiled:
            self.encoder.module.compile(dynamic=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # frozen, so a copy of the model, such as its moving average, shares it


def load_teacher(
    modality: Modality, name: str, output: Output = "pooled", device: str = "cpu", precision: Precision = "32"
) -> Teacher:
    """Find a teacher.

    Args:
        modality: pictures or captions; the teacher of dense captions is `itr.data.first_stage`'s.
        name: for text a folder or name of sentence-transformers or transformers; for pictures a folder or name of
            transformers, a name of timm (or `timm:NAME`, `timm:local-dir:FOLDER`), `open_clip:MODEL/TAG`,
            `open_clip:local-dir:FOLDER`, or `unicom:FILE`.
        output: `pooled`, or `tokens` for all tokens of a picture end to end.
        device: where it runs.
        precision: of its arithmetic.

    Raises:
        UserError: it can't be had.
    """
    if modality == "text":
        if output != "pooled":
            raise UserError("--output tokens is for pictures: captions differ in length")
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
    """Whether a folder, or a name of the hub, holds the list of modules that sentence-transformers writes."""
    if Path(name).is_dir() or name.startswith(("/", ".")):
        return (Path(name) / "modules.json").is_file()
    if name.startswith("sentence-transformers/"):
        return True
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(name, "modules.json")
    if known is not None:  # a path, or the mark that the repository has no such file
        return isinstance(known, str)
    try:
        return bool(hf_hub_download(name, "modules.json"))
    except Exception:  # no such file, or no network: whoever loads the model says so
        return False


def _sentence_transformer(name: str, device: str) -> Encoder:
    if find_spec("sentence_transformers") is None:
        raise UserError(f"teacher {name} needs sentence-transformers: pip install sentence-transformers")
    from sentence_transformers import SentenceTransformer

    try:
        model: Any = SentenceTransformer(name, device=device)
    except Exception as error:  # the hub, its clients and the readers of weights raise a dozen unrelated types
        raise UserError(f"teacher {name} can't be had ({first_line(error)}). {WAY_OUT}") from error

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
    """A tokenizer for the workers that gives what the model of sentence-transformers makes of captions; or None."""
    if model.default_prompt_name is not None:
        return None
    try:
        tokenizer = load_tokenizer(name)
        tokenizer.limit(int(model.max_seq_length))
        ours, theirs = tokenizer(PROBES), model.preprocess(PROBES)
        same = torch.equal(ours.ids, theirs["input_ids"]) and torch.equal(ours.mask, theirs["attention_mask"].bool())
        plain = not any(theirs[key].any() for key in theirs.keys() & {"token_type_ids"})
    except Exception:  # whatever its modules are, they are not a plain transformer
        return None
    known = {"input_ids", "attention_mask", "token_type_ids", "modality"}
    return tokenizer if same and plain and theirs.keys() <= known else None


def _text(name: str) -> Encoder:
    tower, tokenizer = _tower("text", name), load_tokenizer(name)
    tokenizer.limit(word_limit(tower, tokenizer.max_length, None))

    def run(tokens: Tokens) -> Tensor:
        hidden = token_features(tower(input_ids=tokens.ids, attention_mask=tokens.mask.long()))
        weight = tokens.mask.unsqueeze(-1).to(hidden.dtype)  # [C, L, 1]
        return (hidden * weight).sum(1) / weight.sum(1)

    return Encoder(tower, run, tokenizer=tokenizer)


def _vision(name: str, output: Output) -> Encoder:
    from transformers.image_processing_base import ImageProcessingMixin

    tower = _tower("vision", name)
    try:
        size = ImageProcessingMixin.get_image_processor_dict(name)[0].get("size") or {}
    except (OSError, ValueError):
        size = {}
    spec = pretrained_image_spec(name, None if size else own_size(tower))

    def run(image: Tensor) -> Tensor:
        found: Any = tower(pixel_values=image)
        tokens = token_features(found)
        if output == "tokens":
            return tokens.flatten(1)
        pooled: Tensor | None = getattr(found, "pooler_output", None)
        return tokens.mean(1) if pooled is None else pooled.flatten(1)

    return Encoder(tower, run, spec, size.get("shortest_edge") if isinstance(size, dict) else None)


def _tower(modality: Literal["vision", "text"], name: str) -> nn.Module:
    try:
        return make_tower(modality, name, None)
    except UserError as error:
        raise UserError(f"teacher {name} can't be had ({first_line(error.__cause__ or error)}). {WAY_OUT}") from error


def _is_timm(name: str) -> bool:
    import timm

    return "/" not in name and bool(timm.is_model(name.partition(".")[0]))


def _timm(name: str, output: Output) -> Encoder:
    import timm
    import timm.data

    if ":" not in name and not _is_timm(name):
        raise UserError(f"timm has no model {name}{near(name, timm.list_models())}")
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # as above
        raise UserError(f"teacher {name} of timm can't be had ({first_line(error)}). {WAY_OUT}") from error
    library: Any = timm.data  # exports nothing explicitly
    facts: dict[str, Any] = library.resolve_model_data_config(model)
    size = int(facts["input_size"][1])
    mode: Literal["bilinear", "bicubic"] = "bilinear" if facts["interpolation"] == "bilinear" else "bicubic"
    resize: Literal["squash", "shortest"] = "squash" if facts["crop_mode"] == "squash" else "shortest"
    spec = ImageSpec(size, facts["mean"], facts["std"], mode, resize)

    def run(image: Tensor) -> Tensor:
        found: Tensor = model.forward_features(image) if output == "tokens" else model(image)
        return found.flatten(1)

    return Encoder(model, run, spec, int(size / facts["crop_pct"]))


def _open_clip(name: str, output: Output) -> Encoder:
    model, tag = (name, "") if name.startswith(("local-dir:", "hf-hub:")) else name.partition("/")[::2]
    if not tag and ":" not in name:
        raise UserError(f"open_clip:{name} has no weights; give open_clip:MODEL/TAG, such as open_clip:ViT-B-32/openai")
    clip = CLIP(model=model, pretrained=tag or None)

    def run(image: Tensor) -> Tensor:
        encoded = image_features(clip.model.visual, image)
        return encoded.tokens.flatten(1) if output == "tokens" else encoded.pooled

    return Encoder(clip, run, clip.image_spec)


def _unicom(path: str, output: Output) -> Encoder:
    model = load_unicom(path)
    spec = ImageSpec(size=model.image_size, mean=OPENAI_MEAN, std=OPENAI_STD)
    return Encoder(model, model.forward_features if output == "tokens" else model, spec)


def by_length(tokens: Tokens, size: int) -> Iterator[tuple[Tensor, Tokens]]:
    """Captions in parts of at most `size`, the shortest first, without padding beyond the longest of a part.

    Args:
        tokens: captions on the host.
        size: captions of a part.

    Yields:
        Which captions [n], and their tokens.
    """
    lengths = tokens.mask.sum(1)
    for index in lengths.argsort(stable=True).split(size):
        width = int(lengths[index].max())
        yield index, Tokens(tokens.ids[index, :width], tokens.mask[index, :width])
