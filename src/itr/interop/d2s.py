"""Read official checkpoints of D2S-VSE, of either stage, into itr modules."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from itr.backbones.vse import VSE
from itr.errors import UserError, refusing
from itr.interop.d2s_names import rename_d2s_weights, text_config_of, vision_config_of
from itr.methods.d2s import D2S
from itr.module import RetrievalModule
from itr.objectives import Triplet
from itr.training.optim import OptimizerSettings
from itr.weights.matching import fill, without_wrappers
from itr.weights.reading import read_checkpoint

log = logging.getLogger(__name__)

BERT_TOKENIZER = "bert-base-uncased"
BERT_VOCABULARY = 30522
AUTHORS_HEADS = 4
AUTHORS_CROSS_HEADS = 8


def read_d2s_model(
    path: Path,
    vision_config: dict[str, Any] | None = None,
    text_config: dict[str, Any] | None = None,
    tokenizer: str = BERT_TOKENIZER,
    image_size: int | None = None,
) -> RetrievalModule:
    """Read a checkpoint written by the code of D2S-VSE (https://github.com/liuyyy111/d2s-vse).

    Sizes come from the shapes of the weights. A first-stage model becomes a plain VSE; a second-stage model also gets
    D2S with the authors' decoder: no positions, padding is attended to, prompts are normalized in evaluation.

    Args:
        path: the file, of which `model` and `opt` are used; its pickle may only have tensors and a Namespace.
        vision_config: config of the vision tower, if it is not one of the published ones: the weights do not define the
            number of attention heads, which is assumed to be width / 64 for ViT.
        text_config: config of BERT, like `vision_config`.
        tokenizer: name or folder of BERT's tokenizer.
        image_size: side length of the images; by default `opt.img_res`, else the vision tower's own.

    Raises:
        UserError: it is not such a file, or the tokenizer could not be loaded.
    """
    weights, options = load_d2s_file(path)
    with refusing(f"{str(path)!r} is not a D2S-VSE checkpoint that can be converted"):
        vision_config = vision_config or vision_config_of(weights)
        text_config = text_config or text_config_of(weights)
        renamed = rename_d2s_weights(weights, str(vision_config.get("model_type")))
        placeholder = _placeholder_tokenizer(text_config) if tokenizer == BERT_TOKENIZER else None
        backbone = VSE(
            vision_config=vision_config,
            text_config=text_config,
            dim=len(weights["img_enc.image_encoder.fc.weight"]),
            text_mlp=True,
            text_norm=True,
            image_size=image_size or options.get("img_res"),
            # NOTE: the authors' resizing (OpenCV) is not antialiased; ours is.
            interpolation="bilinear",
            resize="squash",
            tokenizer=None if placeholder else tokenizer,
            tokenizer_json=placeholder,
        )
        methods = [_method(weights, options)] if "prompt_learner.prompt_tokens" in weights else []
        hardest_after = 1.0 if options.get("max_violation", True) else 1e9
        objective = Triplet(float(options.get("margin", 0.2)), hardest_after)
        module = RetrievalModule(backbone, objective, methods, OptimizerSettings(lr=2e-4))
        own = [name for name in module.state_dict() if not name.startswith("objective.")]  # the file has no objective
        fill(module, renamed, str(path), "the model", lambda: own, "Pass the configs of its towers")
        return module.eval()


def load_d2s_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights under the authors' names, and the authors' settings.

    Raises:
        UserError: the file does not exist, has types other than tensors and a Namespace, or lacks `model` or `opt`.
    """
    if not Path(path).is_file():
        raise UserError(f"file {str(path)!r} does not exist")
    saved = read_checkpoint(path)
    if not isinstance(saved, dict) or not {"model", "opt"} <= saved.keys():
        raise UserError(f"{str(path)!r} is not a D2S-VSE checkpoint: it needs `model` and `opt`")
    with refusing(f"{str(path)!r} is not a D2S-VSE checkpoint"):
        needed = ("img_enc.image_encoder.fc.weight", "txt_enc.bert.embeddings.word_embeddings.weight")
        weights = without_wrappers(saved["model"], needed)
        for name in needed:
            if name not in weights:
                raise UserError(
                    f"{str(path)!r} is not a D2S-VSE checkpoint with ViT or Swin and BERT: {name} is missing"
                )
        options = saved["opt"]
        return weights, dict(options) if isinstance(options, dict) else dict(vars(options))


def _method(weights: dict[str, Tensor], options: dict[str, Any]) -> D2S:
    """The second stage with the authors' options; whatever the weights determine comes from them."""
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
        # NOTE: the authors' flag is inverted: `no_res_embed` True means that the pooled text is added.
        residual=bool(options.get("no_res_embed", True)),
        distillation={"cos": "cosine", "l1": "l1"}.get(str(options.get("distill_loss", "cos")), "l2"),  # type: ignore[arg-type]
        weight=1.0 if any(name.startswith("long_txt_enc.") for name in weights) else 0.0,
        positions=False,
        attend_padding=True,
        normalise_in_evaluation=True,
    )


def _placeholder_tokenizer(text_config: dict[str, Any]) -> str | None:
    """None for BERT's vocabulary; otherwise a placeholder tokenizer, which only serves to build the model."""
    vocabulary = int(text_config["vocab_size"])
    if vocabulary == BERT_VOCABULARY:
        return None
    log.warning(
        "the text tower has %d tokens, which is not the vocabulary of %s: using a placeholder tokenizer; pass the "
        "right one to embed captions",
        vocabulary,
        BERT_TOKENIZER,
    )
    return made_up_tokenizer(vocabulary, int(text_config.get("max_position_embeddings", 512)))


def made_up_tokenizer(vocabulary: int, length: int) -> str:
    """The tokenizer.json of a BERT tokenizer with that many placeholder words."""
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
