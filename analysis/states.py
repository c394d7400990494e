"""How far each material and model is, and why where it went no further; from the archive's tables alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from analysis.settings import REDUCED_STAGES, CampaignSettings
from driver.archive.reader import ArchiveView
from driver.archive.records import TaskState


@dataclass(frozen=True)
class PairState:
    """State of one material with one model.

    Attributes
    ----------
    stages : dict
        Stage -> done, partial (a trajectory that is not yet as long as planned), failed (may be tried again),
        quarantined (given up), missing, or not planned.
    segments : int
        Committed segments of the trajectory.
    failure : str
        The last failure that no later attempt has mended, as `stage: exception: message`; empty if there is none.
    """

    stages: dict[str, str]
    segments: int
    failure: str

    @property
    def reducible(self) -> frozenset[str]:
        """Stages whose results may be reduced. A trajectory that was given up is not: it may have exploded."""
        return frozenset(stage for stage, status in self.stages.items() if status in ("done", "partial"))


def pair_states(view: ArchiveView, campaign: CampaignSettings) -> dict[tuple[str, str], PairState]:
    """Return the state of every material with every model, in the archive's order.

    Parameters
    ----------
    view : ArchiveView
    campaign : CampaignSettings
        Which stages are planned, and how many segments; where it does not say how many, any length counts as done.
    """
    tasks: dict[tuple[str, str, str], dict[int, TaskState]] = defaultdict(dict)
    for key, state in view.task_states().items():
        tasks[key.material, key.model, key.stage][key.segment] = state
    failures = _failures(view)
    states = {}
    for material in view.material_keys():
        for model in view.model_keys():
            stages = {stage: _status(tasks[material, model, stage]) for stage in REDUCED_STAGES}
            segments = _chain_length(tasks[material, model, "dynamics"])
            if stages["dynamics"] == "done" and campaign.segments is not None and segments < campaign.segments:
                stages["dynamics"] = "partial"
            stages |= {
                stage: "not planned"
                for stage, status in stages.items()
                if status == "missing" and stage not in campaign.stages
            }
            unfinished = [stage for stage in REDUCED_STAGES if stages[stage] in ("failed", "quarantined")]
            failure = next((failures.get((material, model, stage), "") for stage in unfinished), "")
            states[material, model] = PairState(stages, segments, failure)
    return states


def _status(segments: dict[int, TaskState]) -> str:
    statuses = {state.status for state in segments.values()}
    for status in ("quarantined", "failed"):
        if status in statuses:
            return status
    return "done" if statuses else "missing"


def _chain_length(segments: dict[int, TaskState]) -> int:
    return sum(state.status == "done" for state in segments.values())


def _failures(view: ArchiveView) -> dict[tuple[str, str, str], str]:
    """Return the last failure of each stage that has one."""
    found = {}
    for failure in view.failures():
        key = failure.key
        found[key.material, key.model, key.stage] = f"{key.stage}: {failure.exception}: {failure.message}"
    return found
