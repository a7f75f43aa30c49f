"""Reading action_arrays.pickle, which may come from a stranger: arrays of numbers and nothing else.

No class or function that the file names is looked up.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rbc_warp.config.manifest import read_verified
from rbc_warp.config.reading import reading

MAX_ACTION_ARRAYS_BYTES = 16 * 2**20


def read_action_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """A pickled dict of name to array of numbers, as NumPy 1 and 2 write it; of anything else, nothing is run."""
    path = Path(path)
    content = read_verified(path, limit=MAX_ACTION_ARRAYS_BYTES)
    with reading(path, "a pickled dict of name to array of numbers", "use the action_arrays.pickle of the run"):
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name.endswith("PUT") and (argument or 0) > len(content):  # would reserve gigabytes
                raise pickle.UnpicklingError("memo index")
        tables = _NumbersUnpickler(io.BytesIO(content)).load()
        if type(tables) is not dict or not all(type(key) is str for key in tables):
            raise pickle.UnpicklingError("no dict of names")
        return {key: _PickledArray.array_of(value) for key, value in tables.items()}


class _PickledDtype:
    """Stands in for numpy.dtype while reading a pickle: integers and floats only."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not re.fullmatch(r"[iu][1248]|f[248]", code):
            raise pickle.UnpicklingError("dtype")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray:
    """Stands in for numpy.ndarray while reading a pickle; no class or function that a file names is looked up."""

    def __init__(self, *buffer: Any) -> None:
        if len(buffer) >= 4:  # numpy's _frombuffer(content, dtype, shape, order); _reconstruct sends no content yet
            self.content, self.dtype, self.shape, self.order = buffer[:4]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, is_fortran, self.content = state
        self.order = "F" if is_fortran else "C"

    @staticmethod
    def array_of(value: Any) -> np.ndarray:
        if type(value) is not _PickledArray or type(value.dtype) is not _PickledDtype or value.order not in ("C", "F"):
            raise pickle.UnpicklingError("no array")
        flat = np.frombuffer(value.content, value.dtype.dtype)
        return flat.astype(flat.dtype.newbyteorder("=")).reshape(value.shape, order=value.order)


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # protocol 2 spells bytes this way
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _PickledArray for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _PickledArray for core in ("core", "_core")},
}


class _NumbersUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _STAND_INS[module, name]
