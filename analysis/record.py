"""What an archive says of a campaign that is no metric: models, failures, where the time went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from driver.archive.reader import ArchiveView, FailureRow
from driver.archive.records import Header, ModelRecord, RefusedMaterial


@dataclass(frozen=True)
class CampaignRecord:
    """What the report says of a campaign that is no metric.

    Attributes
    ----------
    header : Header
    models : dict of ModelRecord
    failures : list of FailureRow
    refused : list of RefusedMaterial
    stage_seconds : dict
        Stage -> (committed tasks, seconds of workers' time, failed attempts included).
    devices : dict
        Device -> seconds.
    first_s, last_s : float
        Seconds since 1970 of the first task's beginning and the last commit; nan without tasks.
    """

    header: Header
    models: Mapping[str, ModelRecord]
    failures: Sequence[FailureRow]
    refused: Sequence[RefusedMaterial]
    stage_seconds: Mapping[str, tuple[int, float]]
    devices: Mapping[str, float]
    first_s: float
    last_s: float

    @classmethod
    def read(cls, view: ArchiveView) -> CampaignRecord:
        """Read it from an archive's header and tables."""
        tasks = view.table("tasks")
        ran = np.isin(tasks["status"].astype(str), ["done", "failed", "quarantined"])
        done, seconds = tasks["status"] == "done", tasks["seconds"]
        stages = {
            stage: (int((done & chosen).sum()), float(seconds[ran & chosen].sum()))
            for stage in dict.fromkeys(tasks["stage"])
            for chosen in [tasks["stage"] == stage]
        }
        devices: dict[str, float] = defaultdict(float)
        for host, device, spent in zip(tasks["host"][ran], tasks["device"][ran], seconds[ran], strict=True):
            devices[f"{device} on {host}"] += float(spent)
        finished = tasks["finished_s"][ran]
        first = float((finished - seconds[ran]).min()) if ran.any() else float("nan")
        last = float(finished.max()) if ran.any() else float("nan")
        return cls(view.header, view.models(), view.failures(), view.refused(), stages, devices, first, last)
