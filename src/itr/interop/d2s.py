"""Official checkpoints of D2S-VSE, of either stage, as modules of ours."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itr.backbones.vse import VSE
from itr.errors import UserError, refusing
from itr.interop.d2s_names import rename, text_config_of, vision_config_of
from itr.methods.d2s import D2S
from itr.module import RetrievalModule
from itr.objectives import Triplet
from itr.training.optim import OptimizerSettings

log = logging.getLogger(__name__)

BERT_TOKENIZER = "bert-base-uncased"
BERT_VOCABULARY = 30522
AUTHORS_HEADS = 4
AUTHORS_CROSS_HEADS = 8


def convert(
    path: Path,
    vision_config: dict[str, Any] | None = None,
    text_config: dict[str, Any] | None = None,
    tokenizer: str = BERT_TOKENIZER,
    image_size: int | None = None,
) -> RetrievalModule:
    """Read a checkpoint that the code of D2S-VSE wrote (https://github.com/liuyyy111/d2s-vse).

    Sizes come from the shapes of the weights. A model of the first stage becomes a plain VSE, one of the second gets
    the method D2S with the authors' decoder: no positions, padding attended to, prompts normalised in evaluation.

    Args:
        path: the file; `model` and `opt` in it are used. Its pickle may hold nothing but tensors and a Namespace.
        vision_config: config of the vision tower, where it is none of the published: the number of attention heads is
            not in the weights, and is taken as width / 64 for ViT.
        text_config: config of BERT, as `vision_config`.
        tokenizer: name or folder of BERT's tokenizer.
        image_size: side of the images; by default `opt.img_res`, else the vision tower's own.

    Raises:
        UserError: it is another kind of file, or the tokenizer can't be had.
    """
    weights, options = read(path)
    with refusing(f"{str(path)!r} is no checkpoint of D2S-VSE that can be converted"):
        vision_config = vision_config or vision_config_of(weights)
        text_config = text_config or text_config_of(weights)
        renamed = rename(weights, str(vision_config.get("model_type")))
        stand_in = _stand_in(text_config) if tokenizer == BERT_TOKENIZER else None
        backbone = VSE(
            vision_config=vision_config,
            text_config=text_config,
            dim=len(weights["img_enc.image_encoder.fc.weight"]),
            text_mlp=True,
            text_norm=True,
            image_size=image_size or options.get("img_res"),
            # NOTE: the authors' resize (OpenCV's) does not smooth where it shrinks; ours does
            interpolation="bilinear",
            resize="squash",
            tokenizer=None if stand_in else tokenizer,
            tokenizer_json=stand_in,
        )
        methods = [_method(weights, options)] if "prompt_learner.prompt_tokens" in weights else []
        hardest_after = 1.0 if options.get("max_violation", True) else 1e9
        objective = Triplet(float(options.get("margin", 0.2)), hardest_after)
        module = RetrievalModule(backbone, objective, methods, OptimizerSettings(lr=2e-4))
        _fill(module, renamed, path)
        return module.eval()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights by the authors' names, and the authors' settings.

    Raises:
        UserError: there is no such file, it holds other types than tensors and a Namespace, or lacks `model` or `opt`.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {str(path)!r}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # readers of archives and pickles raise a dozen unrelated types
        raise UserError(
            f"{str(path)!r} is no checkpoint of D2S-VSE, or holds objects that could run code, and is not opened: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if not isinstance(saved, dict) or not {"model", "opt"} <= saved.keys():
        raise UserError(f"{str(path)!r} is no checkpoint of D2S-VSE: it needs `model` and `opt`")
    with refusing(f"{str(path)!r} is no checkpoint of D2S-VSE"):
        weights = {str(name).removeprefix("module."): value for name, value in saved["model"].items()}
        needed = ("img_enc.image_encoder.fc.weight", "txt_enc.bert.embeddings.word_embeddings.weight")
        for name in needed:
            if name not in weights:
                raise UserError(
                    f"{str(path)!r} is no checkpoint of D2S-VSE with ViT or Swin and BERT: {name} is missing"
                )
        options = saved["opt"]
        return weights, dict(options) if isinstance(options, dict) else dict(vars(options))


def _method(weights: dict[str, Tensor], options: dict[str, Any]) -> D2S:
    """The second stage with the authors' switches; what the weights tell is taken from them."""
    prompts = weights["prompt_learner.prompt_tokens"]
    blocks = {name.split(".")[2] for name in weights if name.startswith("prompt_learner.decoder_blocks.")}
    crossed = "prompt_learner.cross_attn.in_proj_weight" in weights
    hidden = weights.get("prompt_learner.decoder_blocks.0.mlp.fc1.bias")
    return D2S(
        num_prompts=len(prompts),
        depth=max(1, len(blocks)),
        heads=AUTHORS_CROSS_HEADS if crossed else AUTHORS_HEADS,
        mlp_ratio=4.0 if hidden is None else len(hidden) / prompts.shape[1],
        placement="postfix",
        cross_attention=crossed,
        pooling="gpo" if any(name.startswith("prompt_learner.pooling.") for name in weights) else "mean",
        # NOTE: the authors' flag is stored inverted: `no_res_embed` True means that the pooled text is added.
        residual=bool(options.get("no_res_embed", True)),
        distillation={"cos": "cosine", "l1": "l1"}.get(str(options.get("distill_loss", "cos")), "l2"),  # type: ignore[arg-type]
        weight=1.0 if any(name.startswith("long_txt_enc.") for name in weights) else 0.0,
        positions=False,
        attend_padding=True,
        normalise_in_evaluation=True,
    )


def _stand_in(text_config: dict[str, Any]) -> str | None:
    """None for BERT's vocabulary; for any other a made-up tokenizer, which only serves to build the model."""
    vocabulary = int(text_config["vocab_size"])
    if vocabulary == BERT_VOCABULARY:
        return None
    log.warning(
        "the text tower knows %d tokens, which is not the vocabulary of %s: a made-up tokenizer stands in; give the "
        "right one to embed captions",
        vocabulary,
        BERT_TOKENIZER,
    )
    return made_up_tokenizer(vocabulary, int(text_config.get("max_position_embeddings", 512)))


def made_up_tokenizer(vocabulary: int, length: int) -> str:
    """A tokenizer.json with as many words as that, of BERT's kind."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = (special + [f"word{index}" for index in range(5, vocabulary)])[:vocabulary]
    vocab = {word: index for index, word in enumerate(words)}
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    settings = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": [{"id": vocab[word], "content": word, **token} for word in special if word in vocab],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }  # fmt: skip
    return json.dumps(settings)


def _fill(module: RetrievalModule, weights: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    absent = sorted(name for name in own.keys() - weights.keys() if not name.startswith("objective."))
    surplus = sorted(weights.keys() - own.keys())
    wrong = sorted(n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape)
    for what, names in (("lacks", absent), ("has in addition", surplus), ("has in another shape", wrong)):
        if names:
            raise UserError(
                f"{str(path)!r} does not fit: it {what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}; "
                "give the configs of its towers"
            )
    module.load_state_dict({**own, **weights}, strict=True)  # the objective has none in the file
