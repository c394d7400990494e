from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from only_rank import busy_ranks

from driver.archive.records import RefusedMaterial
from driver.errors import UsageError
from driver.structures.readers import NamedStructure, find_files, read_formulas, read_structures

SILICON = bulk("Si")
ROCKSALT = bulk("NaCl", "rocksalt", a=5.64)

DISORDERED_CIF = """data_x
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 0.5
K1 K 0 0 0 0.5
Cl1 Cl 0.5 0.5 0.5 1
"""


def only_problem(path: Path, **options) -> RefusedMaterial:
    (problem,) = read_structures(path, **options)
    assert isinstance(problem, RefusedMaterial)
    assert problem.source.startswith(str(path))
    assert "\n" not in str(problem)
    return problem


@pytest.mark.parametrize("name", ["rock.cif", "rock.vasp", "rock.extxyz", "rock.json", "rock.db", "rock.extxyz.gz"])
def test_one_structure_is_named_after_its_file(tmp_path, name):
    ase.io.write(tmp_path / name, ROCKSALT)
    (item,) = read_structures(tmp_path / name)
    assert isinstance(item, NamedStructure)
    assert item.key == "rock"
    assert item.source == str(tmp_path / name)
    assert sorted(item.structure.numbers) == [11, 17]
    assert item.structure.volume == pytest.approx(ROCKSALT.cell.volume, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("folder/POSCAR", "folder"),
        ("folder/CONTCAR", "folder"),
        ("folder/POSCAR_Cs2AgBiBr6", "Cs2AgBiBr6"),
        ("folder/a b#1.vasp", "a_b_1"),
        ("folder/mp-149.v2.vasp", "mp-149.v2"),
    ],
)
def test_keys_from_file_names(tmp_path, name, key):
    (tmp_path / "folder").mkdir()
    ase.io.write(tmp_path / name, ROCKSALT, format="vasp")
    (item,) = read_structures(tmp_path / name)
    assert item.key == key


def test_many_frames_are_numbered_or_named_by_their_own_entries(tmp_path):
    named = ROCKSALT.copy()
    named.info["name"] = "rock salt"
    named.info["uid"] = "u1"
    other = SILICON.copy()
    other.info["uid"] = "u2"
    ase.io.write(tmp_path / "set.extxyz", [named, other])
    assert [item.key for item in read_structures(tmp_path / "set.extxyz")] == ["rock_salt", "set-1"]
    assert [item.key for item in read_structures(tmp_path / "set.extxyz", key_field="uid")] == ["u1", "u2"]
    np.testing.assert_allclose(read_structures(tmp_path / "set.extxyz")[1].structure.positions, SILICON.positions)


def test_database_rows_are_named_by_key_value_pairs_or_id(tmp_path):
    with ase.db.connect(tmp_path / "set.db") as database:
        database.write(SILICON, key="silicon", uid="q17")
        database.write(ROCKSALT, uid="q18")
    items = read_structures(tmp_path / "set.db")
    assert [item.key for item in items] == ["silicon", "set-2"]
    assert items[1].source.endswith("set.db [2]")
    assert [item.key for item in read_structures(tmp_path / "set.db", key_field="uid")] == ["q17", "q18"]


def test_missing_key_field_is_a_problem(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", SILICON)
    assert "'uid'" in only_problem(tmp_path / "a.extxyz", key_field="uid").message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.cif", b"garbage\n", "is not a valid cif file"),
        ("noise.cif", bytes(range(255, 100, -1)), "is not a valid cif file"),
        ("half.cif", b"data_x\n_cell_length_a ?\n", "holds no structure"),
        ("bad.vasp", b"x\n1.0\n1 0 0\n", "is not a valid vasp file"),
        ("noise.xyz", bytes(range(255, 100, -1)), "is not a valid extxyz file (not a text file)"),
        ("short.xyz", b"3\n", "is not a valid extxyz file (it ends too early)"),
        ("empty.xyz", b"", "is empty"),
        ("empty.db", b"", "is empty"),
        ("README", b"hello", "is in no format that ASE recognises"),
        ("x.db", b"no", "is not a valid ASE database (file is not a database)"),
        ("bad.cif.gz", b"no", "cannot be read"),
    ],
)
def test_file_that_does_not_parse_is_a_problem_and_left_alone(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert only_problem(tmp_path / name).message.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == content


def test_a_database_of_something_else_is_left_alone(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "mine.db")) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
        database.commit()
    before = (tmp_path / "mine.db").read_bytes()
    assert "a database of something else" in only_problem(tmp_path / "mine.db").message
    assert (tmp_path / "mine.db").read_bytes() == before


def test_a_link_that_leads_nowhere_is_a_problem(tmp_path):
    (tmp_path / "gone.cif").symlink_to(tmp_path / "nowhere.cif")
    (path,) = find_files(".", tmp_path)
    assert "No such file" in only_problem(path).message


@pytest.mark.parametrize("name", ["x.cif", "x.vasp", "x.extxyz", "x.json", "x.db", "x.traj", "x.extxyz.gz", "x@2.cif"])
def test_rank_0_reads_while_the_other_ranks_do_something_else(tmp_path, name):
    ase.io.write(tmp_path / name, ROCKSALT)
    with busy_ranks():
        (item,) = read_structures(tmp_path / name)
    assert isinstance(item, NamedStructure), item.message


def test_frames_before_a_broken_one_are_kept(tmp_path):
    path = tmp_path / "set.extxyz"
    ase.io.write(path, [SILICON, ROCKSALT])
    path.write_text(path.read_text() + '2\nLattice="1 0 0 0 1 0 0 0 1" pbc="T T T"\nSi 0 0\n')
    first, second, third = read_structures(path)
    assert (first.key, second.key) == ("set-0", "set-1")
    assert isinstance(third, RefusedMaterial)
    assert third.key == "set-2"


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (molecule("H2O"), "no three-dimensional cell"),
        (Atoms("H", cell=[4, 4, 4], pbc=[True, True, False]), "not periodic"),
        (Atoms("X", cell=[4, 4, 4], pbc=True), "no element"),
        (Atoms("H", positions=[[np.nan, 0, 0]], cell=[4, 4, 4], pbc=True), "not finite"),
        (Atoms(cell=[4, 4, 4], pbc=True), "no atoms"),
    ],
)
def test_atoms_that_are_no_crystal_are_a_problem(tmp_path, atoms, message):
    ase.io.write(tmp_path / "a.traj", atoms)
    assert message in only_problem(tmp_path / "a.traj").message


@pytest.mark.filterwarnings("ignore:.*occupancies")
def test_partial_occupancy_is_a_problem(tmp_path):
    (tmp_path / "mixed.cif").write_text(DISORDERED_CIF)
    assert "partially occupied site (Na 0.5, K 0.5)" in only_problem(tmp_path / "mixed.cif").message


def test_full_occupancies_are_fine(tmp_path):
    (tmp_path / "full.cif").write_text(DISORDERED_CIF.replace("K1 K 0 0 0 0.5\n", "").replace("0 0 0 0.5", "0 0 0 1.0"))
    (item,) = read_structures(tmp_path / "full.cif")
    assert len(item.structure) == 8


def test_overlapping_atoms_are_let_through(tmp_path):
    ase.io.write(tmp_path / "twice.vasp", Atoms("Na2", positions=np.zeros((2, 3)), cell=[4, 4, 4], pbc=True))
    (item,) = read_structures(tmp_path / "twice.vasp")
    assert isinstance(item, NamedStructure)


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    base = tmp_path / "set [1]" / "größe*"
    base.mkdir(parents=True)
    (base / "a b.cif").write_text("x")
    for pattern in ("*.cif", "a b.cif", ".", f"{base}/*.cif"):
        assert find_files(pattern, base) == [base / "a b.cif"]
    assert find_files("set [1]/g*/*.cif", tmp_path) == [base / "a b.cif"]


@pytest.mark.parametrize("pattern", ["", " ", "**x/*.cif", "~no-such-user/x.cif", "nowhere/*.cif", "nowhere"])
def test_a_pattern_that_cannot_be_is_one_line(tmp_path, pattern):
    with pytest.raises(UsageError, match=r"no-such-user|materials\.structures") as caught:
        find_files(pattern, tmp_path)
    assert "\n" not in str(caught.value)


def test_find_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.cif", "a.cif", "c.xyz", ".hidden", "sub/d.cif"):
        (tmp_path / name).touch()

    def names(pattern):
        return [str(path.relative_to(tmp_path)) for path in find_files(pattern, tmp_path)]

    assert names("a.cif") == ["a.cif"]
    assert names(".") == ["a.cif", "b.cif", "c.xyz"]
    assert names("*.cif") == ["a.cif", "b.cif"]
    assert names("**/*.cif") == ["a.cif", "b.cif", "sub/d.cif"]
    assert names(str(tmp_path / "sub/*")) == ["sub/d.cif"]
    for nothing in ("nope.cif", "*.traj"):
        with pytest.raises(UsageError, match="no file matches"):
            find_files(nothing, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("formula\nCs2AgBiBr6\n".encode("utf-16"), "is not a text file in UTF-8"),
        (b"", "has no column 'formula'"),
        (b"formula\n\n", "holds no formula"),
    ],
)
def test_a_list_of_formulas_that_cannot_be_read_is_one_line(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_formulas(tmp_path / "list.csv")
    with pytest.raises(UsageError, match=r"cannot read .*nowhere\.csv \(No such file or directory\)"):
        read_formulas(tmp_path / "nowhere.csv")


def test_a_list_with_semicolons(tmp_path):
    (tmp_path / "list.csv").write_text("Formula;note\nCs2AgBiBr6;1,2\n")
    assert [formula for formula, _ in read_formulas(tmp_path / "list.csv")] == ["Cs2AgBiBr6"]


def test_read_formulas(tmp_path):
    plain = tmp_path / "list.txt"
    plain.write_text("# two compounds\nCs2AgBiBr6\n\n  Cs2NaInCl6 # stiff\n")
    assert read_formulas(plain) == [("Cs2AgBiBr6", f"{plain} line 2"), ("Cs2NaInCl6", f"{plain} line 4")]
    table = tmp_path / "table.csv"
    table.write_text("X,Formula,sigma\nBr,Cs2AgBiBr6,0.3\nCl,Cs2NaInCl6,\n")
    assert read_formulas(table) == [("Cs2AgBiBr6", f"{table} line 2"), ("Cs2NaInCl6", f"{table} line 3")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "compound,sigma\nNaCl,1\n", r"no column 'formula' \(columns: compound, sigma\)"),
        ("t.csv", "", "no column 'formula'"),
        ("t.csv", "formula\n", "holds no formula"),
        ("t.txt", "# nothing\n", "holds no formula"),
        ("t.txt", None, "cannot read"),
    ],
)
def test_list_of_formulas_that_cannot_be_used(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_formulas(tmp_path / name)
