"""What stands in a .model file, read without torch and without running any of the code that a pickle may hold."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def elements_of(path: Path) -> tuple[int, ...] | None:
    """Return the atomic numbers that a MACE model knows.

    Every class and function that the pickle names is replaced by one that only keeps its arguments; so this is safe
    with any file, and takes milliseconds.

    Parameters
    ----------
    path : Path
        As written by `torch.save` of a whole model.

    Returns
    -------
    tuple of int or None
        Ascending; None if the file is of another kind, which loading it will say.
    """
    try:
        with zipfile.ZipFile(path) as file:
            (name,) = (name for name in file.namelist() if name.endswith("/data.pkl"))
            folder = name.removesuffix("data.pkl")
            with file.open(name) as stream:
                model = _Unpickler(stream).load()
            tensor = model.state["_buffers"]["atomic_numbers"]
            (_, storage, key, *_), offset, (count,), *_ = tensor.arguments
            if storage.__name__ != "LongStorage":
                return None
            numbers = np.frombuffer(file.read(f"{folder}data/{key}"), dtype="<i8", count=count, offset=8 * offset)
    # Whatever a file of another kind runs into.
    except Exception:
        return None
    return tuple(sorted(numbers.tolist()))


class _Kept(dict[Any, Any]):
    """Stands for an object of any class, or for what any function returns: what it was made of."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _Kept:
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any) -> _Kept:
        return _Kept(self, *arguments)

    __hash__ = object.__hash__  # type: ignore[assignment]

    def append(self, item: Any) -> None:
        """Belongs to lists, of which nothing is wanted."""

    def extend(self, items: Any) -> None:
        """As `append`."""

    add = append


class _Unpickler(pickle.Unpickler):
    """Imports and calls nothing."""

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Kept,), {})

    def persistent_load(self, pid: Any) -> Any:
        return pid
