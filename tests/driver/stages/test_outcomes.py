from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_potentials import LennardJones, ToyEngine

from driver.archive.records import Structure, TaskKey
from driver.errors import TaskError
from driver.models import ModelFile
from driver.stages.outcomes import attempted, failure, known_elements
from driver.tasks import TaskInput

MODEL = ModelFile("toy", None, "0" * 64)
KEY = TaskKey("m", "toy", "relax")


def atom(number):
    return TaskInput(TaskKey(f"m{number}", "toy", "relax"), Structure(np.array([number]), np.zeros((1, 3)), np.eye(3)))


def test_a_task_error_is_permanent_and_keeps_its_traceback():
    def compute():
        raise TaskError("hopeless")

    outcome = attempted(KEY, compute)
    assert (outcome.key, outcome.exception, outcome.message) == (KEY, "TaskError", "hopeless")
    assert outcome.permanent
    assert "in compute" in outcome.traceback


def test_any_other_error_may_be_tried_again():
    assert not failure(KEY, ZeroDivisionError("x")).permanent


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("gone")])
def test_errors_of_the_device_are_not_the_tasks(error):
    def compute():
        raise error

    with pytest.raises(type(error)):
        attempted(KEY, compute)


def test_inputs_whose_elements_the_model_lacks_fail_for_good():
    engine = ToyEngine(lambda dtype: LennardJones(dtype=dtype), lacking=[10, 36])
    usable, failures = known_elements([atom(18), atom(10), atom(2), atom(36)], MODEL, engine)
    assert [t.key.material for t in usable] == ["m18", "m2"]
    assert [f.key.material for f in failures] == ["m10", "m36"]
    assert all(f.permanent for f in failures)
