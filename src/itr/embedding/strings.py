"""Captions and file names in files of embeddings.

NumPy stores every string of an array as wide as the longest one, with four bytes a letter: 2,000 short lines and one of
20,000 letters would take 160 MB. So strings are stored as UTF-8 bytes with offsets:

    NAME_utf8     all strings, one after another [bytes], uint8
    NAME_offsets  where each begins and the last one ends [N + 1], int64

NAME itself, the plain array of strings, is also written if it takes at most 1 MB, or 2 kB a string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from itr.errors import UserError

PLAIN_BYTES, PLAIN_BYTES_EACH = 2**20, 2**11
ERRORS = "surrogateescape"  # names of files may contain bytes that are not UTF-8


def string_arrays(name: str, values: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays that store strings under a name, see this module.

    Lone surrogates that stand for no byte, which UTF-8 cannot encode, become `?`.
    """
    encoded = [value.encode("utf-8", ERRORS if _fits(value) else "replace") for value in values]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    arrays: dict[str, np.ndarray] = {
        f"{name}_utf8": np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_offsets": offsets,
    }
    if 4 * max(map(len, values), default=0) * len(values) <= max(PLAIN_BYTES, PLAIN_BYTES_EACH * len(values)):
        arrays[name] = np.array(values, dtype=np.str_)
    return arrays


def _fits(value: str) -> bool:
    try:
        value.encode("utf-8", ERRORS)
    except UnicodeEncodeError:
        return False
    return True


def strings_of(arrays: Mapping[str, np.ndarray], name: str) -> list[str]:
    """The strings that were stored under a name, in either form.

    Raises:
        KeyError: there are none.
    """
    if f"{name}_utf8" not in arrays:
        return [str(value) for value in arrays[name]]
    data, offsets = arrays[f"{name}_utf8"].tobytes(), arrays[f"{name}_offsets"].tolist()
    return [data[start:end].decode("utf-8", ERRORS) for start, end in pairwise(offsets)]


def load_strings(path: str | Path, name: str) -> list[str]:
    """The `caption` or `image_name` of a file of `itr embed`, in the order of its rows.

    Raises:
        UserError: the file could not be read, or has no such strings.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return strings_of(arrays, name)
    except KeyError:
        raise UserError(f"{path} has no {name}") from None
    except Exception as error:  # zipfile and NumPy have their own error types
        raise UserError(f"could not read {path}: {error}") from None
