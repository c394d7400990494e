"""What the fast evaluator needs once per model: extraction and compilation, kept in a cache on disk.

Below the cache's folder: `extracted/<digest>/`, a model as symmetrix-xl reads it, for all of its elements, so that new
materials need no new one; `compiled/<CPU>/`, code for one kind of CPU, which depends on the architecture of a model but
not on its weights or elements; and `compiled/<CPU>-<digest>`, there when that code is.

Both are done in a child process of whichever process comes first: for many seconds they would hold this one's
interpreter (writing and reading files of hundreds of megabytes of JSON), so that it could neither show that it lives
nor be asked to stop.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mace.modules.models import MACE

from driver.engine.child import call
from driver.engine.load import choose_head, parse_dtype
from driver.engine.native import open_native
from driver.engine.once import made_once
from driver.engine.symmetrix import SymmetrixEvaluator
from driver.errors import InterruptedRunError, LatdynError, UsageError
from driver.models import ModelFile

_LAYOUT = 2
"""Counts up when what is stored changes."""

_NATIVE_SETTINGS = {
    # Otherwise it looks up, before each matrix product, which library its BLAS comes from: 30 ms per evaluation, which
    # is more than 80 atoms take.
    "SYMMETRIX_HOST_WORKER_BLAS": "off",
    "KOKKOS_DISABLE_WARNINGS": "1",  # it warns of every rank that shares a node
}
"""Environment of the native library, where the user has not set it."""

Stop = Callable[[], bool]

_X86_64_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
"""What the wheel's native library needs: without them it would end the process."""


class UnfitError(LatdynError):
    """The fast evaluator cannot be used for a model, or not on this machine; the message says why."""


def prepare(
    model: MACE, file: ModelFile, dtype: str, cache: Path, threads: int, stop: Stop | None = None
) -> SymmetrixEvaluator:
    """Return the fast evaluator of a model, extracting and compiling first what no process has yet.

    Parameters
    ----------
    model : MACE
        The whole model of the file.
    file : ModelFile
    dtype : str
        "float32" or "float64".
    cache : Path
        From `driver.models.prepared_folder`.
    threads : int
        Of the evaluator; the first one of a process decides for all.
    stop : callable, optional
        Asked several times a second while something is made; once it is true, that is given up.

    Raises
    ------
    InterruptedRunError
        `stop` has become true; what was begun is not in the cache.
    UsageError
        The file is not the one that `model` was loaded from.
    UnfitError
        symmetrix-xl is not installed, does not run on this CPU, does not know the model's architecture, or finds no
        compiler.
    """
    version = _usable_version()
    # The native library reads these when it is loaded. Bound threads would pile up where ranks share cores.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["OMP_PROC_BIND"] = "false"
    for name, value in _NATIVE_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        extracted = extracted_model(model, file, cache, stop).parent
        native = _compiled(extracted, dtype, cache / "compiled", version, stop)
    except (InterruptedRunError, UsageError):
        raise
    except Exception as error:  # whatever a young library raises, the reference can take over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnfitError(f"symmetrix-xl {version}: {reason[:300]}") from error
    return SymmetrixEvaluator(native, dtype=parse_dtype(dtype))


def is_prepared(model: MACE, file: ModelFile, dtype: str, cache: Path) -> bool:
    """Tell whether `prepare` finds all that it needs, or that there is nothing to wait for."""
    try:
        version = _usable_version()
    except UnfitError:
        return True
    extracted = _extracted_folder(model, file, cache, version)
    return extracted.is_dir() and _stamp(extracted, dtype, cache / "compiled", version).is_dir()


def extracted_model(model: MACE, file: ModelFile, cache: Path, stop: Stop | None = None) -> Path:
    """Return the model as symmetrix-xl reads it, extracting it first if no process has yet; as `prepare` does."""
    target = _extracted_folder(model, file, cache, importlib.metadata.version("symmetrix-xl"))
    given = {"key": file.key, "path": str(file.path), "sha256": file.sha256, "head": _head(model, file)}

    def make(folder: Path) -> None:
        call("driver.engine.native:extract", {**given, "folder": str(folder)}, stop=stop)

    return made_once(target, make, stop=stop) / "model.json"


def _extracted_folder(model: MACE, file: ModelFile, cache: Path, version: str) -> Path:
    return cache / "extracted" / _digest(_LAYOUT, version, file.sha256, _head(model, file))


def _head(model: MACE, file: ModelFile) -> str:
    heads = list(getattr(model, "heads", None) or [""])
    return str(heads[choose_head(model, file)])


def code_folder(cache: Path) -> Path:
    """Return where code for this kind of CPU is kept."""
    return cache / "compiled" / _cpu_digest()


def _usable_version() -> str:
    try:
        version = importlib.metadata.version("symmetrix-xl")
    except importlib.metadata.PackageNotFoundError as error:
        raise UnfitError("symmetrix-xl is not installed (pip install 'latdyn[fast]')") from error
    lacking = sorted(_X86_64_V3 - _cpu()["flags"])
    if lacking:
        raise UnfitError(f"symmetrix-xl needs an x86-64-v3 CPU; this one lacks {', '.join(lacking)}")
    return version


def _compiled(extracted: Path, dtype: str, folder: Path, version: str, stop: Stop | None = None) -> Any:
    """Return a native evaluator, compiled for this kind of CPU if it is not yet."""
    code = code_folder(folder.parent)
    code.mkdir(parents=True, exist_ok=True)
    code.chmod(0o700)  # the library refuses code that others could have written
    os.environ["SYMMETRIX_JIT_CACHE"] = str(code)

    def make(_: Path) -> None:
        call("driver.engine.native:compile_code", {"extracted": str(extracted), "dtype": dtype}, stop=stop)

    # The library has locks of its own, but waits for two minutes at most: compiling may take longer.
    made_once(_stamp(extracted, dtype, folder, version), make, stop=stop)
    return open_native(extracted, dtype)


def _stamp(extracted: Path, dtype: str, folder: Path, version: str) -> Path:
    """Return the folder that is there when code for a model, or for another one of its architecture, is."""
    key = _digest(_LAYOUT, version, dtype, (extracted / "contracts.json").read_text(encoding="utf-8"))
    return folder / f"{_cpu_digest()}-{key}"


def _cpu() -> dict[str, Any]:
    """Return what native code depends on: architecture, name, and instruction set of the first processor."""
    found: dict[str, Any] = {"machine": platform.machine(), "model name": "", "flags": frozenset()}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name in found:
                found[name] = frozenset(value.split()) if name == "flags" else value
    return found


def _cpu_digest() -> str:
    return _digest(*(str(sorted(value) if isinstance(value, frozenset) else value) for value in _cpu().values()))


def _digest(*parts: object) -> str:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=12).hexdigest()
