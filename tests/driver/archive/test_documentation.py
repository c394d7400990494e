"""docs/archive.md says what is in the archive."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from archive_samples import attempt, campaign, dynamics_result, new_archive

from driver.archive.schema import ROW_CHECKSUM, STATUS, TABLES

TEXT = (Path(__file__).parents[3] / "docs" / "archive.md").read_text()
NAMES = set(re.findall(r"`([^`\n]+)`", TEXT))


@pytest.mark.parametrize("table", TABLES)
def test_every_column_is_documented(table: str) -> None:
    columns = set(TABLES[table].names or ())
    assert columns <= NAMES
    assert ROW_CHECKSUM in columns


def test_every_state_is_documented() -> None:
    assert all(re.search(rf"\b{state}\b", TEXT) for state in STATUS)


def test_every_dataset_of_a_trajectory_is_documented(tmp_path: Path) -> None:
    with new_archive(tmp_path / "archive.h5") as writer:
        writer.commit([attempt(dynamics_result("A", "m", 0))])
    shared = re.compile(r"(velocity|force|potential_energy|kinetic_energy)/(step|time)$")
    with h5py.File(tmp_path / "archive.h5") as plain:
        names: list[str] = []
        root = plain["materials/A/m/dynamics/replica_0"]
        root.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    assert {name for name in names if not shared.search(name)} <= NAMES


def test_the_example_for_plain_h5py(tmp_path: Path) -> None:
    """The second example of the page, as it stands there."""
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        for commit in campaign():
            writer.commit(commit)
    example = TEXT.split("```python\n")[2].split("```")[0].replace("runs/demo/archive.h5", str(path))
    *lines, last = example.rstrip().splitlines()
    scope: dict[str, object] = {}
    exec("\n".join([*lines, f"    result = {last.strip()}"]), scope)
    keys, energies = scope["result"]  # type: ignore[misc]
    assert list(keys) == ["A", "B"]
    assert np.all(energies > 0)
