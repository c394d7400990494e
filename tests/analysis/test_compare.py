from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis.compare import compare, summary_markdown, write_comparison
from analysis.plots import parity_figure
from analysis.reference import KINDS, from_model, is_model, read_reference
from analysis.tables import comparison_table
from driver.errors import UsageError

ROOT = Path(__file__).parents[2]


def metrics(**changes) -> pd.DataFrame:
    """A metrics table of eight compounds and two models, as far as a comparison looks at it."""
    formulas = ["Cs2AgBiBr6", "Cs2NaInCl6", "K2NaAlF6", "Cs3BiBr6", "CsAuCl3", "Rb2NaTmCl6", "Cs2TlBiI6", "K2RbSbF6"]
    sigmas = [0.34, 0.37, 0.40, 0.5, 1.3, 0.35, 0.27, 0.9]
    rows = [
        {
            "material": formula,
            "model": model,
            "formula": formula,
            "prototype": "elpasolite",
            "sigma_pooled": factor * sigma,
            "sigma_pooled_error": 0.01,
            "sigma_error_converged": True,
            "run_valid": True,
            "run_problems": "",
            "failure": "",
            "space_group_initial": 225,
        }
        for model, factor in (("one", 1.0), ("two", 1.1))
        for formula, sigma in zip(formulas, sigmas, strict=True)
    ]
    flags = {"run_valid": "boolean", "sigma_error_converged": "boolean"}
    table = pd.DataFrame(rows).astype({**flags, "space_group_initial": "Int64"})
    for name, (row, value) in changes.items():
        table.loc[row, name] = value
    return table


@pytest.fixture
def dft_file(tmp_path) -> Path:
    path = tmp_path / "dft.csv"
    path.write_text(
        "formula,sigma_300K,extra\nCs2AgBiBr6,0.336,x\nIn1Na1Cs2Cl6,0.372,\nF6AlK2Na,0.381,\nBiCs3Br6,0.52,\n"
        "Cs2Au2Cl6,1.4,\nRb2NaTmCl6,0.354,\nTlCs2BiI6,0.267,\nK2RbSbF6,0.893,\nCs2AgAuCl6,,\n"
    )
    return path


def test_formulas_match_in_any_order_of_elements(dft_file):
    reference = read_reference(dft_file)
    assert len(reference.sigma) == 8
    one, two = compare(metrics(), reference, 300.0, resamples=20)
    assert len(one.pairs) == 8
    by_formula = one.pairs.set_index("formula")["sigma_reference"]
    assert by_formula["Cs2NaInCl6"] == 0.372
    assert by_formula["K2NaAlF6"] == 0.381
    assert by_formula["Cs3BiBr6"] == 0.52
    assert by_formula["CsAuCl3"] == 1.4
    assert one.confusion.unstable_found == 1
    assert two.scores["bias"].value > one.scores["bias"].value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sigma_pooled": (0, None), "failure": (0, "dynamics: TaskError: exploded")}, "exploded"),
        ({"run_valid": (0, False), "run_problems": (0, "mean temperature 450 K")}, "450 K"),
        ({"space_group_initial": (0, 87)}, "space group 87"),
        ({"formula": (0, "Cs2AgSbBr6")}, "not in dft.csv"),
    ],
)
def test_what_cannot_be_compared_is_left_out_with_a_reason(dft_file, changes, reason):
    one, _ = compare(metrics(**changes), read_reference(dft_file), 300.0, resamples=20)
    assert len(one.pairs) == 7
    assert reason in one.excluded["Cs2AgBiBr6"]


def test_two_materials_of_one_composition(dft_file):
    table = metrics(formula=(1, "Cs2AgBiBr6"), prototype=(0, ""))
    one, _ = compare(table, read_reference(dft_file), 300.0, resamples=20)
    assert "Cs2NaInCl6" in set(one.pairs["material"])
    assert "same composition as Cs2NaInCl6" in one.excluded["Cs2AgBiBr6"]


def test_another_model_as_reference():
    table = metrics(run_valid=(8, False))
    assert is_model("two", ["one", "two"])
    reference = from_model(table, "two", 450.0)
    (one,) = compare(table, reference, 450.0, resamples=20)
    assert one.model == "one"
    assert len(one.pairs) == 7
    assert one.scores["Pearson"].value == pytest.approx(1.0)
    assert "another model" in from_model(table, "one", None).caveats[0]


def test_other_temperatures_are_refused(dft_file):
    with pytest.raises(UsageError, match="600 K"):
        compare(metrics(), read_reference(dft_file), 600.0)


@pytest.mark.parametrize(
    "text",
    [
        "Formula,Sigma_300K\nBr6BiAgCs2,0.336\n",
        "\ufeffformula;SIGMA (300 K)\nCs2 Ag Bi Br6;0,336\n",
        " FORMULA \t sigma 300 k \r\nAgBiCs2Br6\t0.336\r\n",
        "x,σ_300.0_K,formula\n,0.336,Cs2AgBiBr6\n",
        "formula,sigma_350K,sigma_300K\nCs2AgBiBr6,0.4,0.336\n",
    ],
)
def test_tables_of_many_hands(tmp_path, text):
    path = tmp_path / "mine.csv"
    path.write_bytes(text.encode())
    reference = read_reference(path, wanted_K=300.0)
    assert reference.sigma == {"Cs2AgBiBr6": 0.336}
    assert reference.temperature_K == 300.0


def test_a_table_in_utf_16(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("formula\tsigma_300K\nCs2AgBiBr6\t0.336\n".encode("utf-16"))
    assert read_reference(path).sigma == {"Cs2AgBiBr6": 0.336}


def test_the_temperature_is_that_of_the_table_and_of_the_archive(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("formula,sigma_350K\nCs2AgBiBr6,0.4\n")
    reference = read_reference(path, wanted_K=350.0)
    (one, two) = compare(metrics(), reference, 350.0, resamples=20)
    assert summary_markdown([one, two], reference).startswith("# Sigma(350 K) against mine.csv")
    shown = Console(file=io.StringIO(), width=120)
    shown.print(comparison_table([one, two], reference))
    assert "sigma(350 K) against mine.csv" in shown.file.getvalue()
    assert "300 K" not in shown.file.getvalue() + summary_markdown([one, two], reference)
    figure = parity_figure(one.pairs, "title", reference.temperature_K)
    assert figure.axes[0].get_xlabel() == "σ(350 K), reference"
    with pytest.raises(UsageError, match=r"runs are at 300 K; mine.csv has sigma\(350 K\)"):
        compare(metrics(), reference, 300.0)
    path.write_text("formula,sigma\nCs2AgBiBr6,0.4\n")
    assert read_reference(path, stated_K=350.0).temperature_K == 350.0


def test_caveats_belong_to_a_named_table(dft_file):
    assert not any("PBE" in caveat for caveat in read_reference(dft_file).caveats)
    named = read_reference(dft_file, kind="yang-li-2022")
    assert any("PBE without Hubbard U" in caveat for caveat in named.caveats)
    with pytest.raises(UsageError, match="no kind of reference 'x'; known are yang-li-2022"):
        read_reference(dft_file, kind="x")


def test_undecided_compounds_are_counted(dft_file):
    unclear = metrics(sigma_pooled=(4, 1.015), sigma_error_converged=(0, False))
    one, two = compare(unclear, read_reference(dft_file), 300.0, resamples=20)
    assert (one.undecided, two.undecided) == (2, 1), "two has 0.99 for K2RbSbF6"
    assert "| of these undecided | 2 | 1 |" in summary_markdown([one, two], read_reference(dft_file))


def test_nothing_in_common_says_so(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("formula,sigma_300K\nRb2AgInF6,0.5\n")
    with pytest.raises(UsageError, match=r"no compound .* not in other.csv"):
        compare(metrics(), read_reference(path), 300.0, resamples=20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compound,value\nCs2AgBiBr6,0.3\n", "no column formula and sigma_300K"),
        ("formula,sigma_300K\nCs2AgBiBr6,high\n", "line 2: sigma 'high' is not a number"),
        ("formula,sigma_300K\nCs2AgBiBr6,-1\n", "0 or more"),
        ("formula,sigma_300K\nBlub2,0.3\n", "line 2: 'Blub2' is not a chemical formula"),
        ("formula,sigma_300K\nCs2AgBiBr6,0.3\nBiAgCs2Br6,0.4\n", "line 3: Cs2AgBiBr6 is there already, on line 2"),
        ("formula,sigma_300K\n", "no compound"),
        ("", "no column"),
        ("formula,sigma\nCs2AgBiBr6,0.3\n", "column 'sigma' names no temperature.*--reference-temperature"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_reference(path)


def test_unknown_reference(tmp_path):
    with pytest.raises(UsageError, match=r"neither a file nor a model .*one, two"):
        is_model(str(tmp_path / "none.csv"), ["one", "two"])


def test_files(dft_file, tmp_path):
    reference = read_reference(dft_file)
    comparisons = compare(metrics(space_group_initial=(0, 87)), reference, 300.0, resamples=20)
    (tmp_path / "out").mkdir()
    files = {path.name for path in write_comparison(comparisons, reference, tmp_path / "out")}
    assert files == {
        *(f"pairs_{model}.csv" for model in ("one", "two")),
        *(f"parity_{model}.{kind}" for model in ("one", "two") for kind in ("svg", "png")),
        "summary.json",
        "summary.md",
    }
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["models"]["one"]["compounds"] == 7
    assert summary["models"]["one"]["scores"]["MAE"]["value"] > 0
    assert "Cs2AgBiBr6" in summary["models"]["one"]["excluded"]
    assert len(pd.read_csv(tmp_path / "out" / "pairs_two.csv")) == 8
    text = summary_markdown(comparisons, reference)
    assert "spin polarisation" not in text
    assert "Where this reference comes from is not known" in text
    assert "space group 87" in text


def dft_table() -> Path:
    folder = os.environ.get("LATDYN_REFERENCE_DATA")
    return (Path(folder) if folder else ROOT.parent / "shared" / "data") / "dft_sigma_300K.csv"


@pytest.mark.skipif(not dft_table().is_file(), reason="LATDYN_REFERENCE_DATA has no dft_sigma_300K.csv")
def test_the_public_dft_table_is_read_whole():
    reference = read_reference(dft_table())
    values = pd.Series(reference.sigma)
    assert len(values) == 1813
    assert values.median() == pytest.approx(0.438, abs=0.001)
    assert (values >= 1).mean() == pytest.approx(0.120, abs=0.001)
    assert reference.sigma["Cs2AgBiBr6"] == pytest.approx(0.336, abs=0.001)


@pytest.mark.skipif(not dft_table().is_file(), reason="LATDYN_REFERENCE_DATA has no dft_sigma_300K.csv")
def test_the_public_dft_table_is_recognised_in_any_form(tmp_path):
    assert read_reference(dft_table()).caveats == KINDS["yang-li-2022"].caveats
    table = pd.read_csv(dft_table())[["sigma_300K", "formula"]].round(6).sort_values("sigma_300K")
    table.to_csv(tmp_path / "own.csv", sep=";", decimal=",", index=False)
    assert read_reference(tmp_path / "own.csv").caveats == KINDS["yang-li-2022"].caveats
    table.iloc[1:].to_csv(tmp_path / "part.csv", index=False)
    assert read_reference(tmp_path / "part.csv").caveats != KINDS["yang-li-2022"].caveats
