"""A device whose tensors have no values; whole training loops run on it and show where they would wait for a GPU.

It is torch's `meta` device, which does not support anything that makes the host wait for a GPU: reading a value,
operations whose output shape depends on values, copies to the host, and synchronous copies to the device. `Waits`
records each of these, invents a value, and lets the program continue. Mixing tensors of device and host is an error, as
on a GPU; `meta` itself accepts it in half of the operations.
"""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
aten = torch.ops.aten
ASKS = {aten._local_scalar_dense.default: 1, aten.equal.default: True}
SHAPES = (aten.nonzero, aten.masked_select, aten.bincount)
UNIQUE = (aten._unique2, aten.unique_dim, aten.unique_consecutive)
INDEXED = (aten.index, aten.index_put, aten.index_put_)
COPIES = (aten._to_copy.default, aten.copy_.default)


class Waits(TorchDispatchMode):
    """Records the operations that would wait for a GPU.

    Attributes:
        writing: whether recording is on.
        found: how often each operation occurred, with the Python lines that led to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writing = False
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves([args, kwargs]) if isinstance(value, Tensor)]
        there = any(value.device == DEVICE for value in tensors)
        if there and func not in COPIES and any(value.device != DEVICE and value.dim() for value in tensors):
            # Of host tensors, a GPU accepts only indices, which make the host wait, and scalars.
            assert func.overloadpacket in INDEXED, f"{func} mixes tensors of the device and of the host"
            self._note(func)
        if there and func in ASKS:
            self._note(func)
            return ASKS[func]
        if there and func.overloadpacket in SHAPES:
            self._note(func)
            return torch.empty(1, args[0].dim(), dtype=torch.int64, device=DEVICE)
        if there and func.overloadpacket in UNIQUE:
            self._note(func)
            return args[0], args[0], args[0]
        if there and func.overloadpacket in INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self._note(func)
            return args[0][:1] if func.overloadpacket is aten.index else args[0]
        if func in COPIES:
            return self._copy(func, args, kwargs)
        return func(*args, **kwargs)

    def __enter__(self) -> Waits:
        self._stack = ExitStack()
        # `meta` does not support autocast, which the loss turns off.
        self._stack.enter_context(patch.object(torch, "autocast", lambda *_, **__: nullcontext()))
        self._stack.enter_context(_Made(self))
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        source, target = (args[1], args[0].device) if func is aten.copy_.default else (args[0], kwargs.get("device"))
        if target is not None and target != source.device:
            if not (kwargs.get("non_blocking") or args[2:3] == (True,)):
                self._note(func)
            if source.device == DEVICE:
                source = torch.ones_like(source, device=target)
                args = (args[0], source) if func is aten.copy_.default else (source,)
        return func(*args, **kwargs)

    def _note(self, func: Any) -> None:
        if not self.writing:
            return
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        places = [f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno} {f.name}" for f in reversed(frames[-4:])]
        self.found[f"{func}: {' < '.join(places)}"] += 1


class Steps(pl.Callback):
    """Turns on recording from the end of the first training step to the end of the last."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.waits.writing = not trainer.is_last_batch


class _Made(TorchFunctionMode):
    """Records tensors made from Python numbers, which reach a device by a synchronous copy."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            self.waits._note(func)
        return func(*args, **kwargs)


class Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None: ...


class Strategy(SingleDeviceStrategy):
    """Leaves the model on the device after the run, because there are no values to copy back."""

    def __init__(self) -> None:
        super().__init__(device=DEVICE, accelerator=Accelerator())

    def teardown(self) -> None: ...
