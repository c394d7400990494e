"""The command `models`: which models there are, and fetching them where there is internet."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from driver.download import progress_bar
from driver.errors import UsageError
from driver.models import ModelSpec, cache_folder, configured_models, fetch, list_models


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
    known = configured_models()
    if not names:
        raise UsageError(f"models fetch: name the models to fetch; there is {', '.join(sorted(known))}")
    for name in names:
        if name not in known:
            raise UsageError(f"models fetch: no model {name!r}; there is {', '.join(sorted(known))}")
    for name in names:
        _fetch(known[name], cache)
    return 0


def _fetch(spec: ModelSpec, cache: str | None) -> None:
    with progress_bar(spec.key) as bar:
        file = fetch(spec, cache_folder(cache), progress=bar, notify=print)
    print(f"{spec.key}: {file.path} sha256 {file.sha256}")
