"""What the stages share: an evaluator for all inputs, and how an error of one task becomes a failure of it alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

import torch

from driver.archive.records import TaskFailure, TaskKey, TaskResult
from driver.engine.engine import Engine
from driver.engine.interface import Evaluator
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
            engine.check_elements(model, _elements([task]))
            usable.append(task)
        except TaskError as error:
            failures.append(failure(task.key, error))
    return usable, failures


def shared_evaluator(
    inputs: Sequence[TaskInput], model: ModelFile, engine: Engine, dtype: str
) -> tuple[Evaluator | None, list[TaskInput], list[TaskFailure]]:
    """Return one evaluator for all inputs whose elements the model knows, those inputs, and failures of the others.

    The evaluator is None where no input is left.
    """
    usable, failures = known_elements(inputs, model, engine)
    return (engine.evaluator(model, _elements(usable), dtype) if usable else None), usable, failures


def _elements(inputs: Sequence[TaskInput]) -> list[int]:
    return sorted({int(z) for task in inputs for z in task.structure.numbers})
