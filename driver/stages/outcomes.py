"""What the stages share: which inputs a model can take, and how an error of one task becomes a failure of it alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

import torch

from driver.archive.records import TaskFailure, TaskKey, TaskResult
from driver.engine.engine import Engine
from driver.errors import LatdynError, TaskError
from driver.models import ModelFile
from driver.tasks import TaskInput


def failure(key: TaskKey, error: Exception) -> TaskFailure:
    """Return an exception as the failure of a task: permanent if it is a `LatdynError`, which says what to mend."""
    return TaskFailure(
        key=key,
        exception=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        permanent=isinstance(error, LatdynError),
    )


def attempted(key: TaskKey, compute: Callable[[], TaskResult]) -> TaskResult | TaskFailure:
    """Return the result of `compute`, or its exception as a failure of the task.

    Raises
    ------
    torch.OutOfMemoryError, torch.AcceleratorError
        These concern the worker (its batch is too large, its device is broken), not the task.
    """
    try:
        return compute()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        return failure(key, error)


def known_elements(
    inputs: Sequence[TaskInput], model: ModelFile, engine: Engine
) -> tuple[list[TaskInput], list[TaskFailure]]:
    """Return the inputs whose elements the model knows, and failures of the others."""
    usable: list[TaskInput] = []
    failures: list[TaskFailure] = []
    for task in inputs:
        try:
            engine.check_elements(model, (int(z) for z in task.structure.numbers))
            usable.append(task)
        except TaskError as error:
            failures.append(failure(task.key, error))
    return usable, failures
