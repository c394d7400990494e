"""From nested mappings to frozen settings: every name and type checked, mistakes named by their dotted path. Pure."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from driver.errors import UsageError

_T = TypeVar("_T")

_LARGEST = 1e300
"""Numbers are finite."""

_SHOWN = 20
"""Names that are listed where none is near."""


def build(kind: type[_T], values: Any, path: str) -> _T:
    """Build a frozen settings dataclass from nested mappings, checking every name and type.

    Raises
    ------
    UsageError
        Naming the key by its dotted path, the nearest valid one, or the type that is wanted.
    """
    where = f"{path}." if path else ""
    if not isinstance(values, Mapping):
        raise UsageError(f"{path or 'configuration'}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise UsageError(f"unknown key {where + str(name)!r}{nearest(str(name), names, where)}")
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{where}{item.name} is not set")
    return kind(**{name: _convert(hints[name], value, where + str(name)) for name, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), {} if value is None else value, path)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UsageError(f"{path} = {_shown(value)}: expected a list, as {_example(arguments[0], value, path)}")
        return tuple(_convert(arguments[0], entry, f"{path}[{i}]") for i, entry in enumerate(value))
    return _convert_scalar(hint, value, path)


def _convert_scalar(kind: type, value: Any, path: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
    if kind is bool and isinstance(value, bool):
        return value
    if kind is float and is_number:
        return float(value)
    if kind is int and is_number and value == int(value):
        return int(value)
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    wanted = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}[kind]
    raise UsageError(f"{path} = {_shown(value)}: expected {wanted}")


def _shown(value: Any) -> str:
    """Return a value as it is written in overrides and presets."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _example(kind: type, value: Any, path: str) -> str:
    """Return how a list is written: with the value that stood alone, if it is one."""
    if isinstance(value, kind) and value != "":
        return f'"{path}=[{value}]"'
    return {int: "[2,2,2]", float: "[0.01,0.02]"}.get(kind, "[a,b]")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return what may have been meant by a name that is not known, as the end of a message; "" if nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # the right last part under the wrong section
        close = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there is {', '.join(known)}" if len(known) <= _SHOWN else ""
