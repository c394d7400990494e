"""The command `status`: how far an archive's campaign is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from driver.archive.reader import ArchiveView, open_archive
from driver.archive.records import STAGES, LostWorker
from driver.progress import duration

_SHOWN_FAILURES, _SHOWN_LOST = 10, 5


@dataclass(frozen=True)
class StageStatus:
    """What the archive holds of one model and stage; `seconds` is computing time, failed attempts included."""

    model: str
    stage: str
    done: int
    failed: int
    quarantined: int
    seconds: float


@dataclass(frozen=True)
class CampaignStatus:
    """What an archive says of its campaign.

    Attributes
    ----------
    campaign : str
    materials, models, refused : int
    stages : tuple of StageStatus
    last_commit_s : float or None
        Seconds since the last task was committed.
    failures : tuple of str
        The newest quarantined tasks with their messages.
    lost_workers : tuple of str
        The newest workers that runs went on without, with the reasons.
    size_bytes : int
    """

    campaign: str
    materials: int
    models: int
    refused: int
    stages: tuple[StageStatus, ...]
    last_commit_s: float | None
    failures: tuple[str, ...]
    lost_workers: tuple[str, ...]
    size_bytes: int


def campaign_status(view: ArchiveView, now_s: float) -> CampaignStatus:
    """Summarise an archive; `now_s` is the time since the epoch."""
    states = view.task_states()
    tasks = view.table("tasks")
    seconds: dict[tuple[str, str], float] = {}
    for model, stage, value in zip(tasks["model"], tasks["stage"], tasks["seconds"], strict=True):
        seconds[model, stage] = seconds.get((model, stage), 0.0) + float(np.nan_to_num(value))
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for key, state in states.items():
        row = counts.setdefault((key.model, key.stage), {"done": 0, "failed": 0, "quarantined": 0})
        row[state.status] += 1
    order = sorted(counts, key=lambda pair: (pair[0], STAGES.index(pair[1])))
    quarantined = {key for key, state in states.items() if state.status == "quarantined"}
    failures = {f.key: f"{f.key}: {f.message.splitlines()[0] if f.message else f.exception}" for f in view.failures()}
    finished = tasks["finished_s"]
    return CampaignStatus(
        campaign=view.header.campaign,
        materials=len(view.material_keys()),
        models=len(view.model_keys()),
        refused=len(view.refused()),
        stages=tuple(StageStatus(m, s, **counts[m, s], seconds=seconds.get((m, s), 0.0)) for m, s in order),
        last_commit_s=now_s - float(finished.max()) if len(finished) else None,
        failures=tuple(text for key, text in failures.items() if key in quarantined)[-_SHOWN_FAILURES:],
        lost_workers=tuple(_lost(worker, now_s) for worker in view.lost_workers()[-_SHOWN_LOST:]),
        size_bytes=view.path.stat().st_size,
    )


def _lost(worker: LostWorker, now_s: float) -> str:
    where = " ".join(filter(None, (worker.host, worker.device)))
    return f"rank {worker.rank} on {where} lost {duration(now_s - worker.time_s)} ago: {worker.reason}"


def _render(status: CampaignStatus) -> RenderableType:
    table = Table(box=None, header_style="bold")
    for column in ("model", "stage", "done", "to retry", "quarantined", "computed for"):
        table.add_column(column, justify="left" if column in ("model", "stage") else "right")
    for row in status.stages:
        counts = (str(row.done), str(row.failed), str(row.quarantined))
        table.add_row(row.model, row.stage, *counts, duration(row.seconds))
    head = f"{status.campaign}: {status.materials} materials x {status.models} models, {status.size_bytes / 1e6:.1f} MB"
    if status.refused:
        head += f", {status.refused} materials refused"
    if status.last_commit_s is not None:
        head += f", last commit {duration(status.last_commit_s)} ago"
    return Group(
        Text(head, style="bold"),
        table,
        *(Text(line, style="yellow") for line in (*status.failures, *status.lost_workers)),
    )


def print_status(archive: Path, *, watch: bool, every_s: float = 2.0) -> int:
    """Print how far a campaign is; with `watch` again and again until interrupted.

    Raises
    ------
    ArchiveError
        If there is no archive.
    """
    console = Console()

    def look() -> RenderableType:
        with open_archive(archive) as view:
            return _render(campaign_status(view, time.time()))

    if not watch:
        console.print(look())
        return 0
    try:
        with Live(look(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        return 0


def print_done(archive: Path) -> int:
    """Print only the number of tasks done, for scripts; 0 where there is no archive yet.

    Raises
    ------
    ArchiveError
        If the archive cannot be opened.
    """
    done = 0
    if archive.exists():
        with open_archive(archive) as view:
            done = sum(state.status == "done" for state in view.task_states().values())
    print(done)
    return 0
