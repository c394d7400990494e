"""Preparing a model: other threads go on, it can be left, and what was left is made anew."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from driver.engine import engine as engine_module
from driver.engine.engine import Engine
from driver.engine.load import load_model
from driver.engine.preparation import UnfitError, is_prepared, prepare
from driver.errors import InterruptedRunError, UsageError
from driver.models import PROJECT_ROOT, ModelFile
from driver.settings import EngineSettings

Zoo = Callable[..., ModelFile]

HOG = """
import ctypes

def extract_mace_data(model, **settings):
    ctypes.PyDLL(None).usleep(4_000_000)  # with the interpreter's lock
    raise RuntimeError("had the lock for four seconds")
"""


@contextmanager
def ticks() -> Iterator[list[float]]:
    """Collect the pauses of a thread that ticks every 50 ms."""
    pauses: list[float] = []
    done = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not done.wait(0.05):
            now = time.monotonic()
            pauses.append(now - last)
            last = now

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield pauses
    finally:
        time.sleep(0.2)
        done.set()
        thread.join()


def test_other_threads_go_on_whatever_the_library_does(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "symmetrix").mkdir()
    (tmp_path / "symmetrix" / "__init__.py").touch()
    (tmp_path / "symmetrix" / "extract_mace_data.py").write_text(HOG)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = load_model(zoo("mp-0"))
    with ticks() as pauses, pytest.raises(UnfitError, match=r"symmetrix-xl 0\.\S+: had the lock for four seconds"):
        prepare(model, zoo("mp-0"), "float32", tmp_path / "cache", threads=1)
    assert sum(pauses) > 4.0
    assert max(pauses) < 2.0


def test_it_is_left_while_it_compiles_and_made_anew_later(zoo: Zoo, tmp_path: Path) -> None:
    file = zoo("mp-0")
    engine = Engine("cpu", settings=EngineSettings(cache=str(tmp_path)))
    asked: list[float] = []

    def stop() -> bool:
        if list(tmp_path.glob("compiled/*/**/*.cpp")):  # the library's own, given to the compiler
            asked.append(time.monotonic())
        return bool(asked)

    with pytest.raises(InterruptedRunError, match="run the same command again"):
        engine.prepare(file, "float32", stop=stop)
    assert time.monotonic() - asked[-1] < 5.0
    model = load_model(file)
    assert not is_prepared(model, file, "float32", tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.so"))
    began = time.monotonic()
    assert engine.prepare(file, "float32", stop=lambda: False) == ""
    assert time.monotonic() - began < 100.0  # without waiting for a lock that the killed process had
    assert is_prepared(model, file, "float32", tmp_path)


def test_nothing_is_made_once_asked_to_stop(zoo: Zoo, tmp_path: Path) -> None:
    engine = Engine("cpu", settings=EngineSettings(cache=str(tmp_path)))
    with pytest.raises(InterruptedRunError):
        engine.prepare(zoo("mp-0"), "float32", stop=lambda: True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert engine.take_notices() == []


def test_a_file_that_was_exchanged_is_not_extracted(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the evaluator is made of is the file that was checked, as in the reference."""
    model = load_model(zoo("mp-0"))
    other = ModelFile("mine", zoo("mp-0b").path, zoo("mp-0").sha256)
    monkeypatch.setattr(engine_module, "load_model", lambda file: model)
    engine = Engine("cpu", settings=EngineSettings(cache=str(tmp_path)))
    with pytest.raises(UsageError, match=f"not {other.sha256}: it was changed meanwhile"):
        engine.prepare(other, "float32")


def test_the_compiler_may_take_longer_than_ten_minutes() -> None:
    code = (
        "import inspect; from driver.engine.native import allow_long_compilation; from symmetrix import jit\n"
        "limit = lambda: inspect.signature(jit.prepare_jit_artifact).parameters['compile_timeout'].default\n"
        "assert limit() == 600.0; allow_long_compilation(); assert limit() == 3600.0"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)
