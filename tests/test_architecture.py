"""Who may import whom (docs/architecture.md), read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.relative_to(ROOT) for top in ("driver", "analysis") for path in (ROOT / top).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of all that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def users(package: str) -> set[str]:
    """Modules that import a package."""
    return {str(p) for p in MODULES if any(name.split(".")[0] == package for name in imports(p))}


def test_each_heavy_library_has_its_rooms():
    assert users("mpi4py") == {"driver/transport/mailbox.py", "driver/transport/world.py"}
    assert all(path.startswith(("driver/engine/", "driver/stages/")) for path in users("torch") | users("mace"))
    assert users("hydra") | users("omegaconf") == {"driver/config.py"}


@pytest.mark.parametrize(
    ("room", "may_use"),
    [
        ("driver/archive/", ("driver.archive",)),
        ("driver/structures/", ("driver.archive", "driver.structures", "driver.errors", "driver.settings")),
        (
            "driver/engine/",
            (
                "driver.archive",
                "driver.engine",
                "driver.structures",
                "driver.errors",
                "driver.settings",
                "driver.models",
                "driver.model_container",
                "driver.batch_size",
            ),
        ),
        (
            "driver/stages/",
            (
                "driver.archive",
                "driver.engine",
                "driver.stages",
                "driver.structures",
                "driver.errors",
                "driver.settings",
                "driver.models",
                "driver.model_container",
                "driver.tasks",
                "driver.batch_size",
            ),
        ),
        (
            "analysis/",
            (
                "driver.archive",
                "driver.structures",
                "driver.errors",
                "driver.library_warnings",
                "driver.settings",
                "driver.progress",
                "driver",
            ),
        ),
    ],
)
def test_arrows_point_one_way(room, may_use):
    for path in MODULES:
        if str(path).startswith(room):
            for name in imports(path):
                inside = [name == module or name.startswith(module + ".") for module in may_use if module != "driver"]
                if name.split(".")[0] == "driver" and not (name == "driver" and "driver" in may_use):
                    assert any(inside), f"{path} imports {name}"


def test_the_scheduler_knows_neither_clock_nor_io():
    assert not imports(Path("driver/scheduler.py")) & {"time", "os", "pathlib", "logging", "threading", "random"}


def test_the_archive_needs_numpy_and_h5py_alone():
    third_party = {
        name.split(".")[0]
        for path in MODULES
        if str(path).startswith("driver/archive/")
        for name in imports(path)
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    assert third_party - {"_typeshed"} == {"numpy", "h5py", "driver"}  # _typeshed exists for mypy alone


@pytest.mark.parametrize("module", ["driver.__main__", "driver.run", "driver.archive.writer", "analysis.__main__"])
def test_importing_loads_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'mace', 'mpi4py', 'hydra') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_modules_and_functions_fit_their_rooms():
    for path in MODULES:
        text = (ROOT / path).read_text()
        assert len(text.splitlines()) <= 420, f"{path} wants to be two rooms"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 70, f"{path}: {node.name} does not fit on a screen"
