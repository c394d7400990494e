"""From an archive to a table of metrics: one row for each material and model, in parallel over processes."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.columns import COUNTS, FLAGS, RowBuilder
from analysis.pair import PairResult, reduce_pair
from analysis.settings import AnalysisSettings, CampaignSettings, campaign_settings
from analysis.states import PairState, pair_states
from driver.archive.processes import in_processes
from driver.archive.reader import ArchiveView, open_archive
from driver.archive.verify import Finding, StoredTask, check_frame, check_tasks, stored_tasks
from driver.errors import UsageError
from driver.library_warnings import silence_library_warnings

PAIRS_PER_CHUNK = 8
"""Handed to a process at once: enough that passing them costs nothing, few enough that the ends meet."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
"""What numpy's libraries and phonopy take their numbers of threads from."""


@dataclass(frozen=True)
class Reduction:
    """An archive reduced.

    Attributes
    ----------
    table : DataFrame
        The metrics (columns.py), one row for each material and model, in the archive's order.
    results : dict
        (material, model) -> `PairResult`.
    states : dict
        (material, model) -> `PairState`.
    campaign : CampaignSettings
    settings : AnalysisSettings
    damage : tuple of Finding
        What is damaged in the archive: it was left out, and nothing was reduced from it.
    """

    table: pd.DataFrame
    results: Mapping[tuple[str, str], PairResult]
    states: Mapping[tuple[str, str], PairState]
    campaign: CampaignSettings
    settings: AnalysisSettings
    damage: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Job:
    """What one process needs to reduce pairs; plain data, so that it may be sent."""

    path: str
    campaign: CampaignSettings
    settings: AnalysisSettings
    details: bool


def reduce_archive(
    path: str | Path, settings: AnalysisSettings | None = None, *, processes: int = 1, details: bool = False
) -> Reduction:
    """Reduce everything that an archive holds so far; it may be incomplete, or be written to meanwhile.

    Parameters
    ----------
    path : str or Path
    settings : AnalysisSettings, optional
    processes : int
        1 works within the calling process.
    details : bool
        Keep bands, densities of states and running sigma in the results, for plots.

    Raises
    ------
    ArchiveError
        If the archive cannot be read.
    UsageError
        If its configuration cannot, or it holds nothing yet.
    """
    settings = settings or AnalysisSettings()
    with open_archive(path) as view:
        campaign = campaign_settings(view.header, settings)
        states = pair_states(view, campaign)
        if not states:
            raise UsageError(f"{path} holds no materials and models yet: nothing to reduce")
        job = _Job(str(path), campaign, settings, details)
        frame = check_frame(view)
        pairs, apart = _pairs(view, states)
        parts = _in_parallel(job, pairs, processes) if processes > 1 and len(pairs) > 1 else _reduce(view, job, pairs)
        results: dict[tuple[str, str], PairResult] = {}
        damage = [*frame, *apart]
        for result, findings in parts:
            results[result.material, result.model] = result
            damage += findings
        builder = RowBuilder(view, campaign, settings)
        rows = [builder.row(results[pair], state) for pair, state in states.items()]
    return Reduction(_table(rows), results, states, campaign, settings, tuple(dict.fromkeys(damage)))


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Columns in the order in which rows bring them; pandas' nullable types where a flag or a count may be missing."""
    columns = list(dict.fromkeys(name for entries in rows for name in entries))
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(FLAGS, "boolean") | dict.fromkeys(COUNTS, "Int64"))


@dataclass(frozen=True)
class _Pair:
    """A material and model to reduce: stages that have results, what these claim to be, what is known to be wrong."""

    material: str
    model: str
    stages: frozenset[str]
    stored: tuple[StoredTask, ...]
    findings: tuple[Finding, ...]


def _pairs(view: ArchiveView, states: Mapping[tuple[str, str], PairState]) -> tuple[list[_Pair], list[Finding]]:
    """Return what there is to reduce, and what is wrong in the list of tasks but concerns no pair that is known."""
    stored: dict[tuple[str, str], list[StoredTask]] = defaultdict(list)
    findings: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    tasks, problems = stored_tasks(view)
    for task in tasks:
        stored[task.key.material, task.key.model].append(task)
    for finding in problems:
        if finding.key is not None:
            findings[finding.key.material, finding.key.model].append(finding)
    pairs = [
        _Pair(*pair, state.reducible, tuple(stored[pair]), tuple(findings[pair])) for pair, state in states.items()
    ]
    return pairs, [finding for finding in problems if finding.key is None]


def _reduce(view: ArchiveView, job: _Job, pairs: Sequence[_Pair]) -> Iterator[tuple[PairResult, list[Finding]]]:
    for pair in pairs:
        findings = [*pair.findings, *check_tasks(view, pair.stored)]
        stages = _intact(pair.stages, {finding.key.stage for finding in findings if finding.key})
        result = reduce_pair(view, pair.material, pair.model, stages, job.campaign, job.settings, details=job.details)
        damage = (f"damaged, see `driver verify`: {finding}" for finding in findings)
        yield replace(result, problems=(*damage, *result.problems)), findings


def _intact(stages: frozenset[str], damaged: set[str]) -> frozenset[str]:
    """Return the stages that neither are damaged nor build on one that is."""
    return frozenset() if "relax" in damaged else stages - damaged


def _in_parallel(job: _Job, pairs: Sequence[_Pair], processes: int) -> Iterator[tuple[PairResult, list[Finding]]]:
    chunks = [pairs[start : start + PAIRS_PER_CHUNK] for start in range(0, len(pairs), PAIRS_PER_CHUNK)]
    with _one_thread_each():
        for part in in_processes(_reduce_chunk, [(job, chunk) for chunk in chunks], processes):
            yield from part


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start meanwhile use one thread each, unless the user has set another number."""
    added = [name for name in THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _reduce_chunk(job: _Job, pairs: Sequence[_Pair]) -> list[tuple[PairResult, list[Finding]]]:
    silence_library_warnings()
    with open_archive(job.path) as view:
        return list(_reduce(view, job, pairs))
