from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk

from driver.errors import UsageError
from driver.structures.materials import ElementLists, MaterialFilters, MaterialsSettings, load_materials

CONF = Path(__file__).parents[3] / "conf/materials"
FEW = ElementLists(A=("Cs", "Rb"), M=("Na", "Ag"), M_prime=("In", "Bi"), X=("Cl", "Br"))


def load(base_dir: Path = Path(), seed: int = 0, **settings):
    return load_materials(MaterialsSettings(**settings), base_dir=base_dir, seed=seed)


def keys(**arguments) -> list[str]:
    return [record.key for record in load(**arguments).records]


def preset(name: str) -> MaterialsSettings:
    """A file of conf/materials as settings, without what composes configurations."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    lists = {site: tuple(symbols) for site, symbols in content.pop("elements", {}).items()}
    filters = MaterialFilters(**content.pop("filters", {}))
    content = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return MaterialsSettings(elements=ElementLists(**lists), filters=filters, **content)


def test_element_lists_give_every_combination_in_order():
    found = keys(elements=FEW)
    assert len(found) == 16
    assert found[:4] == ["Cs2NaInCl6", "Cs2NaInBr6", "Cs2NaBiCl6", "Cs2NaBiBr6"]
    assert found[-1] == "Rb2AgBiBr6"


def test_a_composition_that_two_combinations_give_is_there_once():
    lists = ElementLists(A=("Cs",), M=("In", "Tl"), M_prime=("In", "Tl"), X=("Cl",))
    assert keys(elements=lists) == ["CsInCl3", "Cs2InTlCl6", "CsTlCl3"]


def test_record_says_what_it_is():
    (record,) = load(formulas=("Cs2BiAgBr6",)).records
    assert (record.key, record.formula, record.prototype) == ("Cs2AgBiBr6", "Cs2AgBiBr6", "elpasolite")
    assert record.source == "materials.formulas entry 1"
    assert record.descriptors["octahedral_factor"] == pytest.approx((1.15 + 1.03) / (2 * 1.96))
    assert len(record.structure) == 10


def test_the_study_as_a_preset():
    settings = preset("halide_double_perovskites")
    lists = settings.elements
    assert [len(getattr(lists, site)) for site in ("A", "M", "M_prime", "X")] == [5, 12, 36, 4]
    whole = keys(elements=lists)
    assert len(whole) == len(set(whole)) == 8520
    assert {"Cs2AgBiBr6", "K3AlF6", "CsInCl3", "Cs2TlBiI6"} <= set(whole)
    records = load_materials(settings, base_dir=Path(), seed=0).records
    assert len(records) == 2708
    assert all(record.descriptors["bartel_tau"] <= 4.18 for record in records)


def test_demo_and_smoke_presets_stay_within_the_demo_model():
    demo = load_materials(preset("demo"), base_dir=Path(), seed=0).records
    smoke = load_materials(preset("smoke"), base_dir=Path(), seed=0).records
    assert len(demo) >= 8
    assert {"Cs2AgBiBr6", "Cs2NaInCl6", "Cs2AgInCl6"} <= {record.key for record in demo}
    assert [record.key for record in smoke] == ["Cs2NaInCl6", "Cs2AgBiBr6"]
    symbols = {symbol for record in demo for symbol in Atoms(record.structure.numbers).symbols}
    assert symbols <= {"Rb", "Cs", "Na", "Ag", "In", "Sb", "Bi", "Cl", "Br"}


@pytest.mark.parametrize("name", ["structures", "formulas"])
def test_presets_without_a_file_say_what_to_set(name):
    with pytest.raises(UsageError, match=name):
        load_materials(preset(name), base_dir=Path(), seed=0)


@pytest.mark.parametrize(
    ("limits", "descriptor", "low", "high"),
    [
        ({"octahedral_factor_min": 0.5}, "octahedral_factor", 0.5, np.inf),
        ({"octahedral_factor_max": 0.5}, "octahedral_factor", 0, 0.5),
        ({"octahedral_mismatch_max": 0.06}, "octahedral_mismatch", 0, 0.06),
        ({"tolerance_factor_min": 0.85, "tolerance_factor_max": 0.9}, "tolerance_factor", 0.85, 0.9),
        ({"bartel_tau_max": 4.0}, "bartel_tau", 0, 4.0),
        ({"bartel_tau_six_fold_max": 4.18}, "bartel_tau_six_fold", 0, 4.18),
    ],
)
def test_filters_take_exactly_what_lies_within(limits, descriptor, low, high):
    everything = load(elements=FEW).records
    expected = [record.key for record in everything if low <= record.descriptors[descriptor] <= high]
    assert 0 < len(expected) < len(everything)
    assert keys(elements=FEW, filters=MaterialFilters(**limits)) == expected


def test_combinations_that_are_not_neutral_are_left_out_or_named():
    lists = ElementLists(A=("Cs",), M=("Na",), M_prime=("In", "Sn"), X=("Cl",))
    assert keys(elements=lists) == ["Cs2NaInCl6"]
    with pytest.raises(UsageError, match="Cs2NaSnCl6: no prototype"):
        load(elements=lists, filters=MaterialFilters(charge_neutral=False))


def test_sample_is_reproducible_nested_and_independent_of_the_other_materials():
    first = keys(elements=FEW, sample=6, seed=7)
    assert first == keys(elements=FEW, sample=6, seed=7)
    assert first != keys(elements=FEW, sample=6, seed=8)
    assert set(first) > set(keys(elements=FEW, sample=3, seed=7))
    everything = keys(elements=FEW)
    assert first == [key for key in everything if key in first]
    fewer = keys(elements=FEW, sample=6, seed=7, exclude=(next(key for key in everything if key not in first),))
    assert fewer == first
    assert keys(elements=FEW, sample=6, seed=7, limit=2) == first[:2]


def test_include_and_exclude():
    assert keys(elements=FEW, include=("*Br6", "Cs2NaInCl6"), exclude=("Rb*",)) == [
        "Cs2NaInCl6",
        "Cs2NaInBr6",
        "Cs2NaBiBr6",
        "Cs2AgInBr6",
        "Cs2AgBiBr6",
    ]
    with pytest.raises(UsageError, match=r"materials\.include: 'Cs2AgBiBr' matches none"):
        load(elements=FEW, include=("Cs2AgBiBr",))
    with pytest.raises(UsageError, match="leave none"):
        load(elements=FEW, exclude=("*",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "materials: none"),
        ({"elements": ElementLists(A=("Cs",), X=("Cl",))}, "M, M_prime must not be empty"),
        ({"elements": ElementLists(("Cs",), ("Na",), ("Qq",), ("Cl",))}, r"elements\.M_prime: 'Qq'"),
        ({"formulas": ("Cs2AgBiBr6",), "limit": 0}, r"materials\.limit=0"),
        ({"formulas": ("Cs2AgBiBr6",), "sample": -1}, r"materials\.sample=-1"),
        ({"formulas": ("Cs2AgBiBr6",), "on_error": "ignore"}, r"materials\.on_error=ignore"),
        ({"formulas": ("Cs2AgBiBr6", "Cs2BiAgBr6")}, "Cs2AgBiBr6 is given twice.*entry 1.*entry 2"),
    ],
)
def test_wrong_settings_are_one_clear_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        load(**settings)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    ase.io.write(tmp_path / "good.cif", bulk("Si"))
    (tmp_path / "broken.cif").write_text("garbage\n")
    (tmp_path / "list.csv").write_text("formula\nCs2AgBiBr6\nCs2SnI6\n")
    ase.io.write(tmp_path / "twice.vasp", Atoms("Na2", positions=np.zeros((2, 3)), cell=[4, 4, 4], pbc=True))
    return tmp_path


def test_structures_and_formulas_together(folder):
    records = load(base_dir=folder, formulas=("Cs2NaInCl6",), structures=("good.cif", "*.vasp")).records
    assert [(record.key, record.formula, record.prototype) for record in records] == [
        ("Cs2NaInCl6", "Cs2NaInCl6", "elpasolite"),
        ("good", "Si", ""),
        ("twice", "Na", ""),
    ]
    assert records[1].source == str(folder / "good.cif")
    assert records[1].descriptors == {}


def test_every_problem_is_named_on_a_line_of_its_own(folder):
    with pytest.raises(UsageError) as caught:
        load(base_dir=folder, formulas_file="list.csv", structures=("*.cif",))
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("2 materials cannot be used")
    assert "on_error=skip" in first
    assert len(lines) == 2
    assert "list.csv line 3: Cs2SnI6: no prototype" in lines[0]
    assert "broken.cif: is not a valid cif file" in lines[1]


def test_skip_goes_on_and_returns_the_problems(folder):
    materials = load(base_dir=folder, formulas_file="list.csv", structures=("*.cif", "*.vasp"), on_error="skip")
    assert [record.key for record in materials.records] == ["Cs2AgBiBr6", "good", "twice"]
    assert [problem.key for problem in materials.refused] == ["Cs2SnI6", "broken"]


def test_nothing_but_problems_is_refused_even_with_skip(folder):
    with pytest.raises(UsageError, match="none is left to run"):
        load(base_dir=folder, structures=("broken.cif",), on_error="skip")


def test_two_files_of_one_name_are_refused_naming_both(folder):
    ase.io.write(folder / "good.vasp", bulk("Si"))
    with pytest.raises(UsageError, match=r"material good is given twice: .*good\.cif, and .*good\.vasp"):
        load(base_dir=folder, structures=("good.*",), on_error="skip")
