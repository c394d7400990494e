"""What is found out about models before anything is written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from driver import model_checks
from driver.download import hash_file
from driver.errors import InterruptedRunError, UsageError
from driver.model_checks import ModelFacts, check_models
from driver.models import PROJECT_ROOT, ModelFile

DEMO = PROJECT_ROOT / "models/demo/demo.model"
ELEMENTS = (11, 17, 35, 37, 47, 49, 51, 55, 83)


def file_of(path: Path, key: str = "my", head: str = "") -> ModelFile:
    return ModelFile(key, path, hash_file(path), head)


def test_elements_are_found_once_and_remembered(tmp_path, monkeypatch):
    expected = {"my": ModelFacts(ELEMENTS, ("Default",)), "other": ModelFacts(ELEMENTS, ("Default",))}
    files = [file_of(DEMO), file_of(DEMO, "other")]
    assert check_models(files, tmp_path) == expected
    records = list((tmp_path / "checked").iterdir())
    assert len(records) == 1

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded again")

    with monkeypatch.context() as patch:
        patch.setattr(model_checks, "call", fail)
        assert check_models(files, tmp_path) == expected
        with pytest.raises(UsageError, match="model my has no head 'pbe': set head to one of Default"):
            check_models([file_of(DEMO, head="pbe")], tmp_path)
        patch.setattr(model_checks, "_version", lambda package: "another version")
        with pytest.raises(AssertionError, match="loaded again"):
            check_models(files, tmp_path)
    records[0].write_text("damaged")
    assert check_models(files, tmp_path) == expected
    assert json.loads(records[0].read_text())["heads"] == ["Default"]


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path):
    (tmp_path / "file").touch()
    assert check_models([file_of(DEMO)], tmp_path / "file")["my"].atomic_numbers == ELEMENTS


class Ender:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.abort, ())


class Sleeper:
    """Keeps the process that unpickles it busy."""

    def __reduce__(self) -> tuple[object, ...]:
        return (time.sleep, (300,))


def test_a_file_that_ends_the_process_that_loads_it_is_a_line(tmp_path):
    (tmp_path / "ender.model").write_bytes(pickle.dumps(Ender()))
    with pytest.raises(UsageError, match=r"model my \(.*ender\.model\) cannot be loaded: .*SIGABRT") as caught:
        check_models([file_of(tmp_path / "ender.model")], tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("checked/*"))


def test_a_check_is_given_up_on_request(tmp_path):
    (tmp_path / "slow.model").write_bytes(pickle.dumps(Sleeper()))
    began = time.monotonic()
    with pytest.raises(InterruptedRunError, match="run the same command again"):
        check_models([file_of(tmp_path / "slow.model")], tmp_path, lambda: time.monotonic() > began + 1.0)
    assert time.monotonic() < began + 30.0


def test_this_process_does_not_load_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from driver.model_checks import check_models\n"
        "from driver.models import ModelFile; from driver.download import hash_file\n"
        f"path = Path({str(DEMO)!r}); check_models([ModelFile('my', path, hash_file(path))], Path({str(tmp_path)!r}))\n"
        "assert not {'torch', 'mace', 'mpi4py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)
