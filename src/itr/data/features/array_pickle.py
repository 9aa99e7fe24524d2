"""Read pickles of arrays and plain containers with a whitelist: no code that a pickle names is run."""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO

import numpy as np


class _Type:
    """Stand-in for numpy.dtype in a pickle: plain numbers, or objects."""

    def __init__(self, code: str, *_: object) -> None:
        self.dtype: np.dtype[Any] = np.dtype(str(code))
        if self.dtype.kind not in "biufO":
            raise pickle.UnpicklingError(f"it contains values of type {self.dtype}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class ArrayStandIn:
    """Stand-in for an array in a pickle. NumPy itself could be made to overwrite memory by a crafted state."""

    value: Any = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if kind.dtype.kind == "O":
            self.value = raw[0] if shape == () else raw
        else:
            self.value = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _from_buffer(raw: Any, kind: _Type, shape: Any, order: Any, *_: object) -> ArrayStandIn:
    array = ArrayStandIn()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


def _scalar(kind: _Type, raw: bytes) -> Any:
    return np.frombuffer(raw, kind.dtype)[0]


_STAND_INS: dict[tuple[str, str], Any] = {("numpy", "ndarray"): ArrayStandIn, ("numpy", "dtype"): _Type}
for _core in ("numpy.core", "numpy._core"):  # numpy 2 renamed it
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = ArrayStandIn
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class ArrayUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Reads arrays and plain containers with the stand-ins above, and rejects everything else that a pickle names.

    It extends the pure-Python unpickler, because the C version allocates as many entries as a number in the file says,
    which could exhaust memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Look up one of the few names that arrays need."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not needed for arrays")
        return _STAND_INS[module, name]


def read_npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in a `.npy` file.

    Raises:
        ValueError: the file has no array header.
    """
    try:
        major, _ = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        reader: Any = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(stream)
    except Exception as error:  # NumPy parses the header as Python code, so a damaged one can raise any parser error
        raise ValueError(f"it has no array header ({error})") from None
    return shape, dtype
