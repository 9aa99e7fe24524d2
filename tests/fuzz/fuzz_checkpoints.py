"""Targets that open checkpoints: damaged or crafted ones of itr, and published ones that `itr convert` reads."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from hypothesis import strategies as st
from jsonargparse import Namespace

from breaking import broken, edits, json_values, twisted, twists
from fuzz_features import Hostile, not_run
from fuzz_shards import scenes
from itr.checkpoints import open_checkpoint
from itr.errors import UserError
from itr.interop import cusa, d2s
from itr.interop.d2s import made_up_tokenizer
from itr.methods.d2s_teacher import load_stage1
from itr.module import RetrievalModule
from itr.runs.checkpoints.resume import check_settings
from judging import Target, check, home, material
from tiny import save_checkpoint

CANARY = "itr_fuzz_canary"  # a module that must not be imported even if a file names it
PATHS = [
    "subprocess.Popen", "os.system", "builtins.eval", f"{CANARY}.Bomb", f"{CANARY}.sub.Bomb", CANARY,
    "torch.nn.Linear", "",
    "itr.checkpoints.open_checkpoint", "itr.backbones.base.Backbone", "itr.methods.cusa.CUSA", "CUSA", "VSE", "..",
    "a.b", "x.yaml",
    "itr.objectives.Triplet", "itr.methods.d2s.D2S", "webbrowser.open", "antigravity.fly",
    "itr.teachers.load.load_teacher",
]  # fmt: skip


@material
def whole() -> dict[str, Any]:
    """The contents of a small itr checkpoint."""
    folder = Path(home(), "checkpoint")
    folder.mkdir()
    (folder / "tokenizer.json").write_text(made_up_tokenizer(60, 20))
    modules = Path(home(), "modules")
    modules.mkdir()
    (modules / f"{CANARY}.py").write_text("class Bomb:\n    def __init__(self, *a, **k):\n        pass\n")
    sys.path.append(str(modules))
    path = save_checkpoint(folder, scenes(), f"--model.backbone.tokenizer={folder / 'tokenizer.json'}")
    return torch.load(path, weights_only=True)


@material
def whole_bytes() -> bytes:
    whole()
    return Path(home(), "checkpoint", "model.ckpt").read_bytes()


@material
def model() -> RetrievalModule:
    whole()
    return open_checkpoint(str(Path(home(), "checkpoint", "model.ckpt")))


@material
def helpers(name: str) -> ModuleType:
    """The tests of `itr convert`, which write files in the authors' layouts."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "interop" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@material
def published(method: str) -> Path:
    """A checkpoint in the authors' layout."""
    folder = Path(home(), f"published_{method}")
    folder.mkdir()
    if method == "cusa":
        return helpers("test_convert_cusa").published(folder)[0]
    tests = helpers("test_convert_d2s")
    return tests.write(tests.module_of(tests.VIT, stage=2), folder / "published.pth", "vit")


@material
def loaded(method: str) -> dict[str, Any]:
    import argparse

    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(published(method), weights_only=True)


def open_everywhere(path: Path) -> None:
    """Each reader of our checkpoints; the first error of ours is raised when all have tried."""
    model_ = model()
    settings = Namespace(ckpt_path=str(path), model=Namespace())
    errors = []
    for act in (
        lambda: check_settings(settings, "fit", []),
        lambda: open_checkpoint(str(path)),
        lambda: load_stage1(model_.backbone, path),
    ):
        try:
            act()
        except UserError as error:
            errors.append(error)
    check(not any(CANARY in name for name in sys.modules), "a module was imported because a checkpoint names it")
    not_run(path.parent)
    if errors:
        raise errors[0]


def bytes_of_ours(example: Any, folder: Path) -> None:
    (folder / "model.ckpt").write_bytes(broken(whole_bytes(), example))
    open_everywhere(folder / "model.ckpt")


def contents_of_ours(example: Any, folder: Path) -> None:
    part, changes = example
    content: Any = whole() if part is None else {**whole(), part: twisted(whole()[part], changes)}
    content = twisted(content, changes) if part is None else content
    torch.save(content, folder / "model.ckpt")
    open_everywhere(folder / "model.ckpt")


def described(example: Any, folder: Path) -> None:
    """Untrusted class paths and arguments in place of ours."""
    place, path, arguments, form = example
    content = twisted(whole(), [])
    parts = content["hyper_parameters"]
    untrusted: Any = {"class_path": path, "init_args": arguments} if form == "dictionary" else path
    if form == "arguments":
        parts[place if place == "objective" else "backbone"]["init_args"] |= arguments
    elif place == "methods":
        parts["methods"] = [untrusted]
    elif place == "inside":
        parts["backbone"]["init_args"] |= {"vision_config": untrusted}
    elif place == "whole":
        parts["_class_path"] = path
    elif place == "instantiator":
        parts["_instantiator"] = path
    else:
        parts[place] = untrusted
    torch.save(content, folder / "model.ckpt")
    open_everywhere(folder / "model.ckpt")


def hostile(example: Any, folder: Path) -> None:
    """Pickles with code, in each of torch's file formats; `itr convert` reads them too."""
    key, zipped, changes = example
    torch.save({**whole(), key: Hostile(str(folder))}, folder / "model.ckpt", _use_new_zipfile_serialization=zipped)
    (folder / "model.ckpt").write_bytes(broken((folder / "model.ckpt").read_bytes(), changes))
    errors = []
    for act in (open_everywhere, cusa.load_cusa_file, d2s.load_d2s_file):
        try:
            act(folder / "model.ckpt")
        except UserError as error:
            errors.append(error)
    not_run(folder)
    if errors:
        raise errors[0]


def bytes_of_authors(example: Any, folder: Path) -> None:
    method, changes = example
    (folder / "published.pth").write_bytes(broken(published(method).read_bytes(), changes))
    convert(method, folder / "published.pth")


def contents_of_authors(example: Any, folder: Path) -> None:
    method, part, changes = example
    content = dict(loaded(method))
    if method == "d2s":
        content["opt"] = dict(vars(content["opt"]))
    content = {**content, part: twisted(content[part], changes)} if part in content else twisted(content, changes)
    torch.save(content, folder / "published.pth")
    convert(method, folder / "published.pth")


def convert(method: str, path: Path) -> None:
    module = cusa.read_cusa_model(path) if method == "cusa" else d2s.read_d2s_model(path)
    check(isinstance(module, RetrievalModule), "no module")


def values() -> st.SearchStrategy[Any]:
    """Values for any place in a checkpoint."""
    tensors = st.builds(
        lambda kind, shape, value: torch.full(shape, value).to(kind),
        st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64, torch.bfloat16]),
        st.lists(st.integers(0, 40), max_size=4).filter(lambda shape: len(shape) < 4 or max(shape) < 9),
        st.sampled_from([0.0, 1.0, float("nan"), float("inf"), -5.0]),
    )
    return st.one_of(json_values(4), tensors, st.sampled_from(PATHS), _descriptions())


def _descriptions() -> st.SearchStrategy[Any]:
    return st.builds(lambda path, args: {"class_path": path, "init_args": args}, st.sampled_from(PATHS), _arguments())


def _arguments() -> st.SearchStrategy[dict[str, Any]]:
    known = st.sampled_from([
        "args", "cmd", "dim", "vision", "text", "tokenizer", "tokenizer_json", "vision_config", "text_config",
        "image_size", "resize",
        "model", "pretrained", "config", "temperature", "margin", "bounds", "stage1", "num_prompts", "max_words",
        "text_pooling",
    ])  # fmt: skip
    configs = st.sampled_from([
        {"model_type": "vit", "hidden_size": 10**6}, {"model_type": "bert", "num_hidden_layers": -1},
        {"model_type": "../x"},
        {"model_type": "timm_wrapper"}, {"model_type": "dpt", "backbone": "resnet18",
        "use_pretrained_backbone": True}, {"class_path": "x"},
    ])  # fmt: skip
    return st.dictionaries(known, st.one_of(json_values(3), configs, st.sampled_from(PATHS)), max_size=3)


def _fetching() -> st.SearchStrategy[Any]:
    """Configs that name what would have to be fetched."""
    sizes = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    words = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    names = st.sampled_from(
        ["somebody/something", "hf-hub:somebody/something", "roberta-base", "local-dir:/tmp", "/etc"]
    )
    images = st.dictionaries(st.sampled_from(["timm_model_name", "timm_model_pretrained", "image_size"]), names)
    texts = st.dictionaries(
        st.sampled_from(["hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "tokenizer_kwargs"]), names
    )
    clip = st.builds(
        lambda vision, text: {"config": {"embed_dim": 8, "vision_cfg": sizes | vision, "text_cfg": words | text}},
        images,
        texts,
    )
    towers = st.fixed_dictionaries(
        {"model_type": st.sampled_from(["vit", "dpt", "timm_wrapper", "timm_backbone", "bert", "clip_vision_model"])},
        optional={
            key: st.one_of(names, st.booleans())
            for key in ("backbone", "use_pretrained_backbone", "_name_or_path", "auto_map", "architecture")
        },
    )
    vse = st.dictionaries(st.sampled_from(["vision_config", "text_config"]), towers)
    return st.one_of(
        st.tuples(st.just("backbone"), st.just("itr.backbones.clip.CLIP"), clip, st.just("dictionary")),
        st.tuples(st.just("backbone"), st.just(""), vse, st.just("arguments")),
    )


TARGETS = [
    Target("checkpoint bytes", lambda: edits(3), bytes_of_ours, sound=[]),
    Target(
        "checkpoint contents",
        lambda: st.tuples(
            st.sampled_from([None, "hyper_parameters", "state_dict", "hyper_parameters"]), twists(values(), most=2)
        ),
        contents_of_ours,
        sound=(None, []),
    ),
    Target(
        "class paths in checkpoints",
        lambda: st.tuples(
            st.sampled_from(["backbone", "objective", "methods", "optimizer", "inside", "whole", "instantiator"]),
            st.sampled_from(PATHS),
            _arguments(),
            st.sampled_from(["dictionary", "text", "arguments"]),
        ),
        described,
        sound=("backbone", "", {}, "arguments"),
    ),
    # A tower of which only the kind is said has its usual size: two of BERT's take 870 MiB.
    Target("names to fetch in checkpoints", _fetching, described, mebibytes=3072),
    Target(
        "code in checkpoints",
        lambda: st.tuples(st.sampled_from(["state_dict", "hyper_parameters", "model", "opt"]), st.booleans(), edits(2)),
        hostile,
    ),
    Target(
        "bytes of the authors' checkpoints",
        lambda: st.tuples(st.sampled_from(["cusa", "d2s"]), edits(3)),
        bytes_of_authors,
        sound=("d2s", []),
    ),
    Target(
        "contents of the authors' checkpoints",
        lambda: st.tuples(
            st.sampled_from(["cusa", "d2s"]), st.sampled_from(["model", "config", "opt", ""]), twists(values())
        ),
        contents_of_authors,
        sound=("cusa", "", []),
    ),
]
