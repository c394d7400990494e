"""The command `plan`: what a run would do and roughly what it costs. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from driver.archive.reader import ArchiveView, open_archive
from driver.archive.records import STAGES, TaskKey, TaskState
from driver.campaign import Campaign, compose_campaign
from driver.checks import check
from driver.estimates import archive_bytes, size_text
from driver.progress import duration
from driver.settings import Settings
from driver.tasks import TaskSpec

CPU_COST_PER_S = 3e3
GPU_COST_PER_S = 4e5
"""Atoms x force evaluations (float32) per second assumed of one worker before anything is measured: a medium MACE on
one CPU core, and on a data-centre GPU with full batches."""

WORKER_MEMORY_BYTES = 1.5e9
BYTES_PER_BATCH_ATOM = 6e6


@dataclass(frozen=True)
class StagePlan:
    """Tasks of one stage: how many there are, are left, and the cost left (atoms x evaluations)."""

    stage: str
    tasks: int
    left: int
    cost_left: float


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes
    ----------
    stages : tuple of StagePlan
    largest_batch_atoms : int
        Atoms of the largest single supercell, or of its replicas.
    archive_bytes : float
        Estimated size of the finished archive.
    cost_per_s : float or None
        Measured from the archive's own tasks, per worker; None if there are none.
    """

    stages: tuple[StagePlan, ...]
    largest_batch_atoms: int
    archive_bytes: float
    cost_per_s: float | None

    @property
    def cost_left(self) -> float:
        """Of all stages, in atoms x evaluations."""
        return sum(stage.cost_left for stage in self.stages)


def make_plan(
    tasks: Sequence[TaskSpec], states: dict[TaskKey, TaskState], settings: Settings, cost_per_s: float | None
) -> Plan:
    """Count and estimate; pure."""
    stages = []
    for stage in STAGES:
        specs = [spec for spec in tasks if spec.key.stage == stage]
        left = [spec for spec in specs if spec.key not in states or states[spec.key].status == "failed"]
        if specs:
            stages.append(StagePlan(stage, len(specs), len(left), sum(spec.cost for spec in left)))
    size = sum(archive_bytes(spec, settings.dynamics) for spec in tasks)
    largest = max((spec.size.atoms for spec in tasks if spec.key.stage != "displace"), default=0)
    return Plan(tuple(stages), int(largest), size, cost_per_s)


def measured_cost_per_s(view: ArchiveView, tasks: Sequence[TaskSpec]) -> float | None:
    """Cost per second and worker, from the tasks that the archive holds; None if there are none."""
    cost = {spec.key: spec.cost for spec in tasks}
    rows = view.table("tasks")
    done = seconds = 0.0
    columns = (rows[name] for name in ("material", "model", "stage", "segment", "status", "seconds"))
    for material, model, stage, segment, status, spent in zip(*columns, strict=True):
        if status == "done" and spent > 0:
            done += cost.get(TaskKey(material, model, stage, int(segment)), 0.0)
            seconds += float(spent)
    return done / seconds if seconds > 0 and done > 0 else None


def print_plan(overrides: Sequence[str], config_dir: Path | None) -> int:
    """Print the plan of a campaign.

    Raises
    ------
    UsageError
        As `run` would.
    """
    campaign = compose_campaign(overrides, config_dir)
    warnings = check(campaign)
    states: dict[TaskKey, TaskState] = {}
    rate = None
    if campaign.archive.exists():
        with open_archive(campaign.archive) as view:
            states, rate = view.task_states(), measured_cost_per_s(view, campaign.tasks)
    settings = campaign.configuration.settings
    _show(campaign, make_plan(campaign.tasks, states, settings, rate), warnings)
    return 0


def _show(campaign: Campaign, plan: Plan, warnings: Sequence[str]) -> None:
    settings = campaign.configuration.settings
    console = Console(soft_wrap=True, highlight=False)  # paths stay whole, for copying
    console.print(
        f"[bold]{escape(settings.name)}[/]: {len(campaign.materials.records)} materials x {len(campaign.models)} models"
        f" ({', '.join(campaign.models)}), {len(campaign.tasks)} tasks; archive {escape(str(campaign.archive))}"
    )
    table = Table("stage", box=None, header_style="bold")
    for column in ("tasks", "left", "atoms x evaluations left"):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        table.add_row(stage.stage, str(stage.tasks), str(stage.left), f"{stage.cost_left:.3g}")
    console.print(table)
    capacity = max(settings.execution.capacity_atoms or 0, plan.largest_batch_atoms)
    memory = WORKER_MEMORY_BYTES + BYTES_PER_BATCH_ATOM * capacity
    console.print(f"archive when finished: about {size_text(plan.archive_bytes)}")
    console.print(f"memory per worker: about {memory / 1e9:.1f} GB for a batch of {capacity} atoms")
    for name, assumed in (("CPU core", CPU_COST_PER_S), ("GPU", GPU_COST_PER_S)):
        console.print(f"on one {name}, at an assumed {assumed:.2g} /s: {duration(plan.cost_left / assumed)}")
    if plan.cost_per_s:
        text = (
            f"as measured so far, {plan.cost_per_s:.2g} /s: {duration(plan.cost_left / plan.cost_per_s)} on one worker"
        )
        console.print(f"[bold]{text}[/]")
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    for refused in campaign.materials.refused:
        console.print(f"refused: {refused}", style="yellow", markup=False)
