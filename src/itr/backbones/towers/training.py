"""What of a tower is trained: nothing, its last blocks, or low-rank adapters beside its weights (LoRA)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from itr.errors import UserError


def freeze(tower: nn.Module, frozen: bool | int, option: str) -> None:
    """Freeze a tower, or all of it that comes before its last blocks, and turn its dropout off.

    Args:
        tower: the tower; its parameters are in the order in which it uses them, as those of all known towers are.
        frozen: True for all of it; a number of blocks (layers of a transformer, stages of a convolutional network) at
            the end that are trained, with what follows them; False for nothing.
        option: the option that says so, for messages.

    Raises:
        UserError: the tower has fewer blocks.
    """
    if frozen is False:
        return
    tower.eval()  # Lightning leaves it so
    kept = set() if frozen is True else _from_block(tower, frozen, option)
    for parameter in tower.parameters():
        if parameter not in kept:
            parameter.requires_grad_(False)


def blocks_of(tower: nn.Module) -> list[nn.Module]:
    """The blocks of a tower: the list of modules that holds most of its weights, outermost first."""
    lists = [part for part in tower.modules() if isinstance(part, (nn.ModuleList, nn.Sequential)) and len(part)]
    return list(max(lists, key=lambda part: (_size(part), len(part)), default=nn.ModuleList()).children())


def adapt(root: nn.Module, rank: int | None, option: str, within: Callable[[str], bool] = lambda name: True) -> None:
    """Add adapters to the layers of a tower that are trained, and freeze the rest of it; for no rank, do nothing.

    A linear layer W x becomes W x + 2 B A x, with A [rank, in] drawn and B [out, rank] zero, so that the tower is the
    same at first (LoRA, Hu et al., 2022, https://arxiv.org/abs/2106.09685, Equation 3 with alpha = 2 rank). A tower
    without linear layers gets adapters of its convolutions.

    NOTE: the paper adapts the attention's queries and values alone; here each linear layer has adapters, which later
    work found to train better.

    Args:
        root: the tower, or a model that contains it.
        rank: rank of the adapters.
        option: the option that says so, for messages.
        within: whether a name in `root` belongs to the tower.

    Raises:
        UserError: peft is not installed, the rank is below 1, or no layer of the tower is trained.
    """
    if rank is None:
        return
    if rank < 1:
        raise UserError(f"{option}={rank} must be at least 1")
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise UserError(f"{option} needs peft: `pip install itr[lora]`") from None
    names = _adapted(root, within)
    if not names:
        raise UserError(f"{option} adapts the layers that are trained, but all layers of this tower are frozen")
    trained = {_plain(name): parameter.requires_grad for name, parameter in root.named_parameters()}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="|".join(map(re.escape, names)))
    LoraModel(root, {"default": config}, "default")  # replaces the layers within the root
    del root.peft_config  # else peft warns of a second tower within the same model
    for name, parameter in root.named_parameters():  # peft freezes more, or less in a model with other adapters
        parameter.requires_grad_("lora_" in name if within(name) else trained[_plain(name)])


def adapt_sides(model: nn.Module, vision: int | None, text: int | None, is_vision: Callable[[str], bool]) -> None:
    """Add adapters to the two sides of a model that holds both towers, see `adapt`."""
    adapt(model, vision, "vision_lora", is_vision)
    adapt(model, text, "text_lora", lambda name: not is_vision(name))


def merge_adapters(module: nn.Module) -> int:
    """Fold all adapters into the weights beside them; the layers are then as before `adapt`. Returns their number."""
    if not any("lora_" in name for name, _ in module.named_parameters()):
        return 0  # peft need not be installed
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [name for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name in (name for name in found if not name.startswith(tuple(f"{outer}." for outer in found))):
        module.set_submodule(name, _merged(module.get_submodule(name)))
    return len(found)


def named_for_adapters(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights of a plain module, by the names that they have beside the adapters of `module`, and those adapters."""
    own = module.state_dict()
    adapters = {name: value for name, value in own.items() if "lora_" in name}
    if not adapters or adapters.keys() & weights.keys():
        return dict(weights)
    names = {_plain(name): name for name in own.keys() - adapters.keys()}
    return {names.get(name, name): value for name, value in weights.items()} | adapters


def _merged(layer: Any) -> nn.Module:
    if hasattr(layer, "unload_and_optionally_merge_module"):  # an attention, whose inner layer is adapted too
        unload = layer.unload_and_optionally_merge_module
        return cast(nn.Module, unload(merge=True, safe_merge=True, adapter_names=None))
    layer.merge(safe_merge=True)
    return cast(nn.Module, layer.get_base_layer())


def _adapted(root: nn.Module, within: Callable[[str], bool]) -> list[str]:
    """Names of the trained layers that get adapters; those of an attention are adapted with it, not one by one."""
    modules = {name: module for name, module in root.named_modules() if within(f"{name}.") and _trained(module)}
    attention = [name for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)]
    inside = tuple(f"{name}." for name in attention)
    linear = [n for n, module in modules.items() if isinstance(module, nn.Linear) and not n.startswith(inside)]
    convolutions = [n for n, module in modules.items() if isinstance(module, nn.Conv2d) and module.groups == 1]
    return attention + linear or convolutions


def _plain(name: str) -> str:
    """The name of a parameter without what the adapters' layers insert."""
    return name.replace(".base_layer", "")


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _from_block(tower: nn.Module, count: int, option: str) -> set[nn.Parameter]:
    """The parameters from the last `count` blocks to the end."""
    blocks, parameters = blocks_of(tower), list(tower.parameters())
    if not 1 <= count <= len(blocks):
        raise UserError(
            f"{option}={count} must be true, false, or a number of blocks that are trained, from 1 to {len(blocks)}"
        )
    first = next(blocks[-count].parameters())
    return set(parameters[next(i for i, parameter in enumerate(parameters) if parameter is first) :])


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
