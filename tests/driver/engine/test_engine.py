"""What the engine keeps, makes anew and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from driver.engine import engine as engine_module
from driver.engine.engine import Engine
from driver.errors import TaskError, UsageError
from driver.models import ModelFile

Zoo = Callable[..., ModelFile]


def test_keeps_evaluators_by_model_head_precision_and_elements(zoo: Zoo) -> None:
    engine = Engine()
    model = zoo("multi-head")
    first = engine.evaluator(model, (9, 11, 9), "float64")
    assert engine.evaluator(model, [11, 9], "float64") is first
    others = [
        engine.evaluator(model, (9, 11), "float32"),
        engine.evaluator(model, (9,), "float64"),
        engine.evaluator(zoo("multi-head", head="pbe"), (9, 11), "float64"),
        engine.evaluator(zoo("mp-0"), (9, 11), "float64"),
    ]
    assert len({id(e) for e in (first, *others)}) == 5
    assert first.atomic_numbers == (9, 11)
    assert others[0].dtype == torch.float32
    assert first.name == "torch"
    assert first.cutoff_A == pytest.approx(4.5)


def test_loads_a_file_once(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    original = engine_module.load_model
    monkeypatch.setattr(engine_module, "load_model", lambda file: (loaded.append(file), original(file))[1])
    engine = Engine()
    for numbers in ((9,), (11,), (9, 11)):
        engine.evaluator(zoo("mp-0"), numbers, "float64")
    assert len(loaded) == 1


def test_forgets_the_least_recently_used(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_EVALUATORS", 2)
    engine = Engine()
    first, second = (engine.evaluator(zoo("mp-0"), (z,), "float64") for z in (9, 11))
    assert engine.evaluator(zoo("mp-0"), (9,), "float64") is first  # now the second is older
    engine.evaluator(zoo("mp-0"), (17,), "float64")
    assert engine.evaluator(zoo("mp-0"), (9,), "float64") is first
    assert engine.evaluator(zoo("mp-0"), (11,), "float64") is not second


def test_names_elements_that_the_model_lacks(zoo: Zoo) -> None:
    with pytest.raises(TaskError, match="model mp-0 does not know Fe, Xe; leave"):
        Engine().evaluator(zoo("mp-0"), (9, 54, 26), "float64")


def test_refuses_an_unknown_precision(zoo: Zoo) -> None:
    with pytest.raises(UsageError, match="dtype 'double'"):
        Engine().evaluator(zoo("mp-0"), (9,), "double")


def test_sets_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        Engine(threads=1)
        assert torch.get_num_threads() == 1
        Engine()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_multiplies_in_full_precision_whatever_the_environment_says() -> None:
    """NVIDIA's containers set a variable that turns TF32 on."""
    code = (
        "import torch; from driver.engine.engine import Engine; "
        "before = torch.backends.cuda.matmul.allow_tf32; Engine(); "
        "print(before, torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["True", "False", "highest"], run.stderr


def test_checks_a_file_before_any_task_needs_it(zoo: Zoo, tmp_path: Path) -> None:
    engine = Engine()
    engine.check(zoo("multi-head"))
    with pytest.raises(UsageError, match="no head 'r2scan'"):
        engine.check(zoo("multi-head", head="r2scan"))
    with pytest.raises(UsageError, match="no such file"):
        engine.check(ModelFile("absent", tmp_path / "absent.model", "none"))
