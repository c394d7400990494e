"""Can the models be used? Found out before anything is written, once for each file. Importable without torch."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driver.atomic import write_atomically
from driver.engine.child import ChildError, call
from driver.errors import UsageError
from driver.models import ModelFile, head_index, prepared_folder

_LAYOUT = 1
"""Counts up when what is remembered changes."""

_PACKAGES = ("torch", "mace-torch", "e3nn")
"""What loading depends on."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model that has been loaded.

    Attributes
    ----------
    atomic_numbers : tuple of int
        Elements that it knows, ascending.
    heads : tuple of str
    """

    atomic_numbers: tuple[int, ...]
    heads: tuple[str, ...]


def check_models(
    files: Iterable[ModelFile], cache: Path | None = None, stop: Callable[[], bool] | None = None
) -> dict[str, ModelFacts]:
    """Make sure that models can be loaded and have the heads that are asked for.

    They are loaded in a child process, so that this one does not carry torch; what comes out is remembered by sha256
    and versions, so that the next check takes no time.

    Parameters
    ----------
    files : iterable of ModelFile
        From `driver.models.resolve`, which found that they may be loaded.
    cache : Path, optional
        Folder for what is remembered; `driver.models.prepared_folder()` if not given.
    stop : callable, optional
        Once it is true, the check is given up.

    Returns
    -------
    dict of str to ModelFacts
        By key.

    Raises
    ------
    UsageError
        A file cannot be used (one line names it, and what it is), or has no such head.
    InterruptedRunError
        `stop` has become true.
    """
    files, folder = list(files), (cache or prepared_folder()) / "checked"
    found = {file.sha256: _recall(folder, file) for file in files}
    unknown = list({file.sha256: file for file in files if found[file.sha256] is None}.values())
    if unknown:
        found |= zip((file.sha256 for file in unknown), _load(unknown, folder, stop), strict=True)
    facts = {file.key: checked for file in files if (checked := found[file.sha256])}
    for file in files:
        head_index(facts[file.key].heads, file)
    return facts


def _load(files: list[ModelFile], folder: Path, stop: Callable[[], bool] | None) -> list[ModelFacts]:
    given = [{"key": file.key, "path": str(file.path), "sha256": file.sha256} for file in files]
    try:
        answers = call(
            "driver.engine.inspection:inspect_models", given, stop=stop, environment={"OMP_NUM_THREADS": "1"}
        )
    except ChildError as error:
        names = ", ".join(f"model {file.key} ({file.path})" for file in files)
        raise UsageError(f"{names} cannot be loaded: {error}") from error
    for file, answer in zip(files, answers, strict=True):
        with contextlib.suppress(OSError):  # nowhere to remember it: it is found out again
            write_atomically(_record(folder, file), json.dumps(answer))
    return [_facts(answer) for answer in answers]


def _recall(folder: Path, file: ModelFile) -> ModelFacts | None:
    try:
        return _facts(json.loads(_record(folder, file).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _facts(answer: Any) -> ModelFacts:
    return ModelFacts(tuple(sorted(map(int, answer["atomic_numbers"]))), tuple(map(str, answer["heads"])))


def _record(folder: Path, file: ModelFile) -> Path:
    key = " ".join((str(_LAYOUT), file.sha256, *map(_version, _PACKAGES)))
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(
            f"{package} is not installed, and models cannot be loaded without it; pip install 'latdyn[run]'"
        ) from error
