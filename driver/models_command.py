"""The command `models`: what there is, fetching where there is internet, preparing ahead of a run."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from driver.download import progress_bar
from driver.errors import UsageError
from driver.models import ModelSpec, cache_folder, configured_models, fetch, list_models, resolve


def print_models(cache: str | None) -> int:
    """Print a table of all configured models and whether their files are here."""
    specs = [spec for spec in configured_models().values() if spec.path or spec.url]
    table = Table("model", "state", "size (MB)", "training data", "licence", box=None, header_style="bold")
    for status in list_models(specs, cache_folder(cache)):
        size = f"{status.size_bytes / 1e6:.1f}" if status.size_bytes else ""
        table.add_row(status.spec.key, status.state, size, status.spec.training_data, status.spec.licence)
    Console().print(table)
    print(f"cache: {cache_folder(cache)}; fetch with: python -m driver models fetch NAME ...")
    return 0


def fetch_models(names: Sequence[str], cache: str | None) -> int:
    """Download models into the cache.

    Raises
    ------
    UsageError
        For a name that is not configured, or a download that fails.
    """
    for spec in _chosen("fetch", names):
        _fetch(spec, cache)
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
        from driver.engine.preparation import cache_folder as prepared_folder

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


def _fetch(spec: ModelSpec, cache: str | None) -> None:
    with progress_bar(spec.key) as bar:
        file = fetch(spec, cache_folder(cache), progress=bar, notify=print)
    print(f"{spec.key}: {file.path} sha256 {file.sha256}")
