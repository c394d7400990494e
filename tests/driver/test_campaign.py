"""From materials, models and stages to tasks, and to estimates of what they cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from driver.archive.records import MaterialRecord, Structure, TaskKey, TaskState
from driver.campaign import build_tasks
from driver.config import compose
from driver.errors import UsageError
from driver.estimates import archive_bytes, size_text
from driver.plan import make_plan
from driver.progress import Estimate, duration
from driver.settings import DynamicsSettings, RelaxSettings, Settings, SupercellSettings


def material(key: str, a: float = 5.0) -> MaterialRecord:
    return MaterialRecord(key, key, Structure(np.array([11, 17]), np.zeros((2, 3)), np.eye(3) * a), "test")


SETTINGS = Settings("x", dynamics=DynamicsSettings(replicas=2, equilibration_ps=1.0, production_ps=2.0))


def test_tasks_of_a_campaign():
    tasks = {task.key: task for task in build_tasks([material("A"), material("B")], ["m", "n"], SETTINGS)}
    assert len(tasks) == 2 * 2 * (1 + 1 + 3)
    relax, first, second = (
        TaskKey("A", "n", "relax"),
        TaskKey("A", "n", "dynamics", 0),
        TaskKey("A", "n", "dynamics", 1),
    )
    assert tasks[relax].requires == () and tasks[first].requires == (relax,) and tasks[second].requires == (first,)
    assert tasks[TaskKey("A", "n", "displace")].requires == (relax,)
    assert tasks[relax].size.atoms == 2 and tasks[first].size.atoms == 2 * 8 * 2
    assert tasks[first].cost == 32 * 500


def test_supercell_by_length_counts_cells():
    settings = replace(SETTINGS, supercell=SupercellSettings(min_length_A=12.0))
    tasks = {task.key: task for task in build_tasks([material("A")], ["m"], settings)}
    assert tasks[TaskKey("A", "m", "dynamics", 0)].size.atoms == 2 * 27 * 2


def test_geometry_as_given_is_one_evaluation():
    cheap = build_tasks([material("A")], ["m"], replace(SETTINGS, relax=RelaxSettings(mode="none")))[0]
    assert cheap.cost == build_tasks([material("A")], ["m"], SETTINGS)[0].cost / 100


@pytest.mark.parametrize("stages", [("displace",), ("dynamics",)])
def test_a_stage_without_what_it_builds_on_is_refused(stages):
    with pytest.raises(UsageError, match=r"needs relax; .* relax\.mode=none"):
        build_tasks([material("A")], ["m"], replace(SETTINGS, stages=stages))


def test_plan_counts_what_is_left():
    tasks = build_tasks([material("A")], ["m"], SETTINGS)
    done = {
        TaskKey("A", "m", "relax"): TaskState("done", 1),
        TaskKey("A", "m", "displace"): TaskState("quarantined", 3),
    }
    plan = make_plan(tasks, done, SETTINGS, 100.0)
    assert [(s.stage, s.tasks, s.left) for s in plan.stages] == [
        ("relax", 1, 0),
        ("displace", 1, 0),
        ("dynamics", 3, 3),
    ]
    assert plan.cost_left == 3 * 32 * 500


def test_archive_size_is_mostly_frames():
    settings = compose(["campaign=demo"]).settings
    tasks = build_tasks([material("A")], ["m"], settings)
    frames = settings.dynamics.segment_steps // settings.dynamics.frame_steps
    assert archive_bytes(tasks[-1], settings.dynamics) == pytest.approx(16 * frames * 9 * 4, rel=0.5)


def test_more_tasks_than_can_be_handled_are_refused():
    endless = replace(SETTINGS, dynamics=DynamicsSettings(production_ps=98.0, segment_ps=0.01))
    with pytest.raises(UsageError, match=r"tasks are too many .* raise dynamics\.segment_ps"):
        build_tasks([material(str(i)) for i in range(2001)], ["m"], endless)


def test_sizes_are_written_as_people_say_them():
    assert [size_text(x) for x in (5.4e5, 2.5e9, 5.4e10, 2.96e11, 3.4e12)] == [
        "0.54 MB",
        "2.5 GB",
        "54 GB",
        "296 GB",
        "3.4 TB",
    ]


def test_remaining_time_is_proportional_to_the_cost_left():
    estimate = Estimate(100.0, now_s=10.0)
    assert estimate.remaining_s(100.0, 20.0) is None
    assert estimate.remaining_s(75.0, 20.0) == pytest.approx(30.0)
    assert [duration(s) for s in (None, 45, 600, 12000)] == ["unknown", "45 s", "10 min", "3 h 20 min"]
