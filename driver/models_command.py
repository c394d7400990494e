"""The command `models`: what there is, fetching where there is internet, preparing ahead of a run."""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from driver.download import progress_bar
from driver.errors import UsageError
from driver.models import (
    ModelSpec,
    cache_folder,
    configured_models,
    fetch,
    licence_notice,
    list_models,
    prepared_folder,
    require_licence,
    resolve,
    trust_file,
)
from driver.trust import accepted_on, trust_folder


def print_models(cache: str | None) -> int:
    """Print a table of all configured models, whether their files are here, and their licences."""
    specs = [spec for spec in configured_models().values() if spec.path or spec.url]
    table = Table(box=None, header_style="bold")
    for column in ("model", "state", "size (MB)", "training data", "licence"):
        table.add_column(column, no_wrap=column != "training data")
    for status in list_models(specs, cache_folder(cache)):
        size = f"{status.size_bytes / 1e6:.1f}" if status.size_bytes else ""
        table.add_row(status.spec.key, status.state, size, status.spec.training_data, _licence(status.spec))
    Console().print(table)
    for licence, url in sorted({(spec.licence, spec.licence_url) for spec in specs if licence_notice(spec)}):
        print(f"{licence}: {url}")
    print(f"cache: {cache_folder(cache)}; fetch with: python -m driver models fetch NAME ...")
    return 0


def fetch_models(names: Sequence[str], cache: str | None, licences: Sequence[str] = ()) -> int:
    """Download models into the cache.

    Parameters
    ----------
    names : sequence of str
    cache : str or None
        See `driver.models.cache_folder`.
    licences : sequence of str
        Which ones the user accepts; others that restrict use are asked for on a terminal.

    Raises
    ------
    UsageError
        For a name that is not configured, a licence that is not accepted, or a download that fails.
    """
    specs = _chosen("fetch", names)
    accept = _acceptance(licences)
    for spec in specs:
        _fetch(spec, cache, accept)
    return 0


def trust_models(files: Sequence[str], licences: Sequence[str] = ()) -> int:
    """Remember, by their content, that model files may be loaded.

    Raises
    ------
    UsageError
        For what is no model file, or a licence that is not accepted.
    """
    if not files:
        raise UsageError("models trust: name the files that may be loaded, as: python -m driver models trust my.model")
    for file in files:
        print(f"trusted from now on: {file} sha256 {trust_file(Path(file).expanduser(), _acceptance(licences))}")
    print(f"remembered in {trust_folder()}")
    return 0


def prepare_models(names: Sequence[str], cache: str | None, dtype: str) -> int:
    """Extract and compile what the fast evaluator needs, so that no run has to wait for it.

    Returns
    -------
    int
        0, also for models that the fast evaluator cannot take: they run with the reference.

    Raises
    ------
    UsageError
        For a name that is not configured, or a file that is missing or cannot be used.
    """
    files = [resolve(spec, cache_folder(cache)) for spec in _chosen("prepare", names)]
    warnings.simplefilter("ignore")  # of torch, e3nn and mace: for their developers
    with contextlib.redirect_stdout(io.StringIO()):
        from driver.engine.engine import Engine  # takes seconds and hundreds of megabytes

    engine = Engine("cpu", threads=1)
    for file in files:
        began = time.perf_counter()
        reason = engine.prepare(file, dtype)
        done = f"ready for symmetrix in {dtype} ({time.perf_counter() - began:.0f} s)"
        print(f"{file.key}: {f'will run with torch: {reason}' if reason else done}", flush=True)
    print(f"cache: {prepared_folder()}")
    return 0


def _chosen(action: str, names: Sequence[str]) -> list[ModelSpec]:
    known = configured_models()
    if not names:
        raise UsageError(f"models {action}: name the models to {action}; there is {', '.join(sorted(known))}")
    for name in names:
        if name not in known:
            raise UsageError(f"models {action}: no model {name!r}; there is {', '.join(sorted(known))}")
    return [known[name] for name in names]


def _fetch(spec: ModelSpec, cache: str | None, accept: Callable[[ModelSpec], bool]) -> None:
    require_licence(spec, accept)  # asked before there is a bar
    told: list[str] = []
    with progress_bar(spec.key) as bar:
        file = fetch(spec, cache_folder(cache), progress=bar, notify=told.append)
    print(f"{spec.key}: {file.path} sha256 {file.sha256}, licence {spec.licence}")
    for line in told:
        print(line)


def _licence(spec: ModelSpec) -> str:
    if not licence_notice(spec):
        return spec.licence
    accepted = accepted_on(spec.licence)
    return f"{spec.licence}, accepted {accepted[:10]}" if accepted else f"{spec.licence}, not accepted"


def _acceptance(licences: Sequence[str]) -> Callable[[ModelSpec], bool]:
    """Return what tells whether the user accepts a model's licence, asking on a terminal."""

    def accept(spec: ModelSpec) -> bool:
        if spec.licence in licences:
            return True
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return False
        print(f"{licence_notice(spec)}.")
        try:
            return input(f"Do you accept the terms of {spec.licence}? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    return accept
