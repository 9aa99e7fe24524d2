"""Private names of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers of a module without those of its children: the dictionary that the module itself uses.

    Missing: a public way to replace buffers temporarily; `named_buffers` returns a copy.
    """
    return module._buffers


def forget_compiled(module: nn.Module) -> None:
    """Undo `module.compile()`, so that the module runs in eager mode again.

    Missing: a public method that undoes `nn.Module.compile`.
    """
    module._compiled_call_impl = None


@contextmanager
def state_loads_through(change: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]) -> Iterator[None]:
    """Within the block, every `load_state_dict` loads what `change(module, weights)` returns.

    Missing: a public hook on the weights that another library, such as timm, loads into the modules that it makes.
    """
    from torch import nn

    original = nn.Module.load_state_dict

    def load(module: nn.Module, state_dict: Any, *args: Any, **options: Any) -> Any:
        return original(module, change(module, dict(state_dict)), *args, **options)

    nn.Module.load_state_dict = load  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


class StartsWorkersWithin:
    """Mixin for a DataLoader that starts its worker processes inside a context.

    Missing: a public hook around the start of workers. `__iter__` starts them too, but also resets
    persistent workers, which waits for their response.
    """

    def starting_workers(self) -> AbstractContextManager[Any]:
        """The context in which workers are started."""
        return nullcontext()

    def _get_iterator(self) -> Any:
        with self.starting_workers():
            return super()._get_iterator()  # type: ignore[misc]


def end_workers(batches: Iterator[Any]) -> None:
    """End the worker processes of a loader's iterator, if it has any.

    Missing: a public way to close such an iterator. It ends its workers when it is deleted, but not if the garbage
    collector deletes it, as after an error whose traceback holds it: then each worker costs 5 or 10 seconds.
    """
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()
