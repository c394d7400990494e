"""What symmetrix-xl does once per model, in functions that a child process can be asked for; torch only where needed.

Extraction and compilation take up to minutes, and parts of them hold the interpreter's lock for many seconds: see
`driver.engine.preparation`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_SPLINE_POINTS = 1024
"""Of each radial function. The library's 256 bend them enough to be 2e-4 off in force constants; these, 7e-6 (measured
with models of random weights), at the same speed."""

COMPILE_TIMEOUT_S = 3600.0
"""The library's ten minutes are not enough for a medium foundation model where cores are shared or slow."""


def extract(argument: Mapping[str, str]) -> None:
    """Write a model as symmetrix-xl reads it, and what its code is generated from.

    Parameters
    ----------
    argument : mapping
        `key`, `path`, `sha256` of the model file, `head`, and the `folder` to write to.
    """
    from symmetrix.extract_mace_data import extract_mace_data

    from driver.engine.load import open_model
    from driver.models import ModelFile

    folder = Path(argument["folder"])
    file = ModelFile(argument["key"], Path(argument["path"]), argument["sha256"])
    with _silenced():
        data = extract_mace_data(open_model(file), head=argument["head"] or None, num_spline_points=_SPLINE_POINTS)
    (folder / "model.json").write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
    contracts = {name: data.get(name) for name in ("model_type", "execution_contracts")}
    (folder / "contracts.json").write_text(json.dumps(contracts, sort_keys=True), encoding="utf-8")


def compile_code(argument: Mapping[str, str]) -> None:
    """Compile, into the library's own cache, what the model extracted to a folder needs.

    Parameters
    ----------
    argument : mapping
        `extracted`, the folder, and `dtype`.
    """
    allow_long_compilation()
    open_native(Path(argument["extracted"]), argument["dtype"])


def allow_long_compilation() -> None:
    """Have the library wait longer for the compiler; it has no setting for that."""
    from symmetrix import jit

    for function in vars(jit).values():
        defaults = getattr(function, "__kwdefaults__", None) or {}
        if "compile_timeout" in defaults:
            defaults["compile_timeout"] = COMPILE_TIMEOUT_S


def open_native(extracted: Path, dtype: str) -> Any:
    """Return a native evaluator of an extracted model, compiling its code unless the library's cache has it."""
    from symmetrix import Symmetrix

    with _silenced():
        return Symmetrix(str(extracted / "model.json"), dtype=dtype).evaluator


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep the library's remarks to its developers out of the log."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # logging.warning() sets one up, even if it is silent
