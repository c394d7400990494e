"""Which evaluator dynamics gets, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from driver.archive.records import Structure
from driver.engine import preparation
from driver.engine.choice import COMPARISONS, ForceAgreement, StiffnessAgreement, together
from driver.engine.engine import Engine
from driver.engine.interface import Evaluator
from driver.errors import TaskError, UsageError
from driver.models import ModelFile
from driver.settings import EngineSettings

Zoo = Callable[..., ModelFile]


@pytest.fixture
def engine(prepared_cache: Path) -> Callable[..., Engine]:
    return lambda **settings: Engine(settings=EngineSettings(cache=str(prepared_cache), **settings))


def test_takes_the_fast_one_when_it_agrees(
    engine: Callable[..., Engine], zoo: Zoo, structures: list[Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = engine()
    choices = ours.choose(zoo("mp-0"), structures, "float32")
    assert {choice.evaluator.name for choice in choices} == {"symmetrix"}
    assert together(choices) == [[0, 1, 2, 3]]
    assert all("forces" in choice.reason and "from the reference" in choice.reason for choice in choices)
    assert len({choice.reason for choice in choices}) == len(structures)  # each was compared
    monkeypatch.setattr("driver.engine.choice._evaluate", lambda *_: pytest.fail("compared again"))
    assert ours.choose(zoo("mp-0"), structures[:2], "float32")[0].evaluator is choices[0].evaluator


def test_a_structure_that_disagrees_takes_no_other_with_it(
    engine: Callable[..., Engine],
    zoo: Zoo,
    structures: list[Structure],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def disagree(fast: Evaluator, reference: Evaluator, structure: Structure) -> ForceAgreement:
        return ForceAgreement(0.0, 1.0 if len(structure) in (5, 9) else 0.0, 1.0)

    monkeypatch.setitem(COMPARISONS, "dynamics", (disagree,))
    ours = engine()
    choices = ours.choose(zoo("mp-0"), structures, "float32")
    assert [choice.evaluator.name for choice in choices] == ["symmetrix", "torch", "symmetrix", "torch"]
    assert together(choices) == [[0, 2], [1, 3]]
    assert choices[1].evaluator.atomic_numbers == (11, 17, 35, 55, 83)  # of those that need it, no others
    assert choices[1].reason.startswith("symmetrix differs too much: energy")
    first, second = ours.take_notices()
    assert first.startswith("model mp-0, Cl-Cs: dynamics uses torch: symmetrix gives energy")
    assert "Na-Br-Bi" in second
    assert not ours.take_notices()


def test_force_constants_decide_for_displacements(
    engine: Callable[..., Engine], zoo: Zoo, structures: list[Structure]
) -> None:
    (choice,) = engine().choose(zoo("mp-0"), structures[1:2], "float64", "displace")
    assert (choice.evaluator.name, choice.reason) == ("torch", "asked for by engine.displace_evaluator")
    (choice,) = engine(displace_evaluator="auto").choose(zoo("mp-0"), structures[1:2], "float64", "displace")
    assert choice.evaluator.name == "symmetrix"
    strict = engine(displace_evaluator="auto", stiffness_tolerance_eV_A2=1e-12, stiffness_tolerance_relative=1e-12)
    (choice,) = strict.choose(zoo("mp-0"), structures[1:2], "float64", "displace")
    assert choice.evaluator.name == "torch"
    assert choice.reason.startswith("symmetrix differs too much: force constants")
    (choice,) = strict.choose(zoo("mp-0"), structures[1:2], "float64", "dynamics")
    assert choice.evaluator.name == "symmetrix"


def test_takes_the_reference_when_there_is_no_other(
    engine: Callable[..., Engine], zoo: Zoo, structures: list[Structure]
) -> None:
    ours = engine()
    for _ in range(2):
        (choice,) = ours.choose(zoo("mh-1"), structures[1:2], "float32")
    assert choice.evaluator.name == "torch"
    assert "use_last_readout_only" in choice.reason
    (notice,) = ours.take_notices()  # found out once, said once
    assert notice.startswith("model mh-1: torch instead of symmetrix: symmetrix-xl")
    assert "use_last_readout_only" in ours.prepare(zoo("mh-1"), "float32")
    with pytest.raises(UsageError, match=r"engine.evaluator=symmetrix with model mh-1: .*use_last_readout_only"):
        engine(evaluator="symmetrix").choose(zoo("mh-1"), structures[1:2], "float32")


def test_takes_what_is_asked_for(engine: Callable[..., Engine], zoo: Zoo, structures: list[Structure]) -> None:
    for name in ("torch", "symmetrix"):
        (choice,) = engine(evaluator=name).choose(zoo("mp-0"), structures[1:2], "float32")
        assert (choice.evaluator.name, choice.reason) == (name, "asked for by engine.evaluator")


def test_names_elements_that_the_model_lacks(engine: Callable[..., Engine], zoo: Zoo) -> None:
    xenon = Structure(np.array([54]), np.zeros((1, 3)), 9.0 * np.eye(3))
    with pytest.raises(TaskError, match="does not know Xe"):
        engine().choose(zoo("mp-0"), [xenon], "float32")


@pytest.mark.parametrize(("flags", "lacking"), [("sse2 fma avx", "avx2, bmi1"), ("", "avx, avx2")])
def test_an_old_cpu_has_the_reference(
    engine: Callable[..., Engine],
    zoo: Zoo,
    structures: list[Structure],
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    lacking: str,
) -> None:
    monkeypatch.setattr(preparation, "_cpu", lambda: {"machine": "x86_64", "flags": frozenset(flags.split())})
    (choice,) = engine().choose(zoo("mp-0"), structures[1:2], "float32")
    assert choice.evaluator.name == "torch"
    assert f"needs an x86-64-v3 CPU; this one lacks {lacking}" in choice.reason


def test_without_the_extra_there_is_the_reference(
    engine: Callable[..., Engine], zoo: Zoo, structures: list[Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise preparation.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(preparation.importlib.metadata, "version", absent)
    (choice,) = engine().choose(zoo("mp-0"), structures[1:2], "float32")
    assert (choice.evaluator.name, choice.reason[:32]) == ("torch", "symmetrix-xl is not installed (p")


@pytest.mark.parametrize(
    ("energy", "force", "scale", "within"),
    [
        (0.0, 0.0, 0.0, True),
        (1e-4, 5e-4, 0.0, True),
        (1.1e-4, 0.0, 1.0, False),
        (0.0, 1.4e-3, 2.0, True),  # 5e-4 + 5e-4 * 2
        (0.0, 1.6e-3, 2.0, False),
        (float("nan"), 0.0, 1.0, False),
        (0.0, float("nan"), 1.0, False),
        (0.0, 0.0, float("nan"), False),
    ],
)
def test_tolerances(energy: float, force: float, scale: float, within: bool) -> None:
    assert (ForceAgreement(energy, force, scale).excess(EngineSettings()) <= 1.0) is within


def test_tolerance_of_force_constants() -> None:
    settings = EngineSettings(stiffness_tolerance_eV_A2=0.01, stiffness_tolerance_relative=0.1)
    assert StiffnessAgreement(0.105, 1.0).excess(settings) < 1.0 < StiffnessAgreement(0.115, 1.0).excess(settings)
    assert StiffnessAgreement(float("nan"), 1.0).excess(settings) == float("inf")


@pytest.mark.parametrize(
    "values",
    [
        {"evaluator": "fast"},
        {"displace_evaluator": "fast"},
        {"force_tolerance_eV_A": 0.0},
        {"stiffness_tolerance_eV_A2": -1.0},
    ],
)
def test_settings_are_checked(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"engine.{next(iter(values))}"):
        EngineSettings(**values)  # type: ignore[arg-type]
