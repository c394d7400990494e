"""What the fast evaluator needs once per model: extraction and compilation, kept in a cache on disk.

Below the cache's folder: `extracted/<digest>/`, a model as symmetrix-xl reads it, for all of its elements, so that new
materials need no new one; `compiled/<CPU>/`, code for one kind of CPU, which depends on the architecture of a model but
not on its weights or elements; and `compiled/<CPU>-<digest>`, there when that code is.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mace.modules.models import MACE

from driver.engine.load import choose_head, parse_dtype
from driver.engine.once import made_once
from driver.engine.symmetrix import SymmetrixEvaluator
from driver.errors import LatdynError
from driver.models import ModelFile

CACHE_VARIABLE = "LATDYN_CACHE"

_LAYOUT = 2
"""Counts up when what is stored changes."""

_SPLINE_POINTS = 1024
"""Of each radial function. The library's 256 bend them enough to be 2e-4 off in force constants; these, 7e-6 (measured
with models of random weights), at the same speed."""

_X86_64_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
"""What the wheel's native library needs: without them it would end the process."""

log = logging.getLogger(__name__)


class UnfitError(LatdynError):
    """The fast evaluator cannot be used for a model, or not on this machine; the message says why."""


def cache_folder(setting: str | None = None) -> Path:
    """Return the folder of prepared models: the setting, else $LATDYN_CACHE, else ~/.cache/latdyn/prepared."""
    chosen = setting or os.environ.get(CACHE_VARIABLE) or "~/.cache/latdyn/prepared"
    return Path(chosen).expanduser().absolute()


def prepare(model: MACE, file: ModelFile, dtype: str, cache: Path, threads: int) -> SymmetrixEvaluator:
    """Return the fast evaluator of a model, extracting and compiling first what no process has yet.

    Parameters
    ----------
    model : MACE
        The whole model of the file.
    file : ModelFile
    dtype : str
        "float32" or "float64".
    cache : Path
        From `cache_folder`.
    threads : int
        Of the evaluator; the first one of a process decides for all.

    Raises
    ------
    UnfitError
        symmetrix-xl is not installed, does not run on this CPU, does not know the model's architecture, or finds no
        compiler.
    """
    version = _usable_version()
    # The native library reads these when it is loaded. Bound threads would pile up where ranks share cores.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["OMP_PROC_BIND"] = "false"
    try:
        extracted = extracted_model(model, file, cache).parent
        native = _compiled(extracted, dtype, cache / "compiled", version)
    except Exception as error:  # whatever a young library raises, the reference can take over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnfitError(f"symmetrix-xl {version}: {reason[:300]}") from error
    return SymmetrixEvaluator(native, dtype=parse_dtype(dtype))


def extracted_model(model: MACE, file: ModelFile, cache: Path) -> Path:
    """Return the model as symmetrix-xl reads it, extracting it first if no process has yet; as `prepare` does."""
    version = importlib.metadata.version("symmetrix-xl")
    heads = list(getattr(model, "heads", None) or [""])
    head = heads[choose_head(model, file)]
    target = cache / "extracted" / _digest(_LAYOUT, version, file.sha256, head)
    return made_once(target, lambda folder: _extract(file, head, folder)) / "model.json"


def _usable_version() -> str:
    try:
        version = importlib.metadata.version("symmetrix-xl")
    except importlib.metadata.PackageNotFoundError as error:
        raise UnfitError("symmetrix-xl is not installed (pip install 'latdyn[fast]')") from error
    lacking = sorted(_X86_64_V3 - _cpu()["flags"])
    if lacking:
        raise UnfitError(f"symmetrix-xl needs an x86-64-v3 CPU; this one lacks {', '.join(lacking)}")
    return version


def _extract(file: ModelFile, head: str, folder: Path) -> None:
    """Write a model as symmetrix-xl reads it, and what its code is generated from."""
    from symmetrix.extract_mace_data import extract_mace_data

    log.info("model %s: extracting it for the fast evaluator", file.key)
    with _silenced():
        data = extract_mace_data(str(file.path), head=head or None, num_spline_points=_SPLINE_POINTS)
    (folder / "model.json").write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
    contracts = {name: data.get(name) for name in ("model_type", "execution_contracts")}
    (folder / "contracts.json").write_text(json.dumps(contracts, sort_keys=True), encoding="utf-8")


def _compiled(extracted: Path, dtype: str, folder: Path, version: str) -> Any:
    """Return a native evaluator, compiled for this kind of CPU if it is not yet."""
    cpu = _digest(*(str(sorted(value) if isinstance(value, frozenset) else value) for value in _cpu().values()))
    code = folder / cpu
    code.mkdir(parents=True, exist_ok=True)
    code.chmod(0o700)  # the library refuses code that others could have written
    os.environ["SYMMETRIX_JIT_CACHE"] = str(code)
    key = _digest(_LAYOUT, version, dtype, (extracted / "contracts.json").read_text(encoding="utf-8"))
    made: list[Any] = []

    def compile_code(_: Path) -> None:
        log.info("compiling the fast evaluator in %s for this CPU; this can take minutes", dtype)
        made.append(_native(extracted, dtype))

    # The library has locks of its own, but waits for two minutes at most: compiling may take longer.
    made_once(folder / f"{cpu}-{key}", compile_code)
    return made[0] if made else _native(extracted, dtype)


def _native(extracted: Path, dtype: str) -> Any:
    from symmetrix import Symmetrix

    with _silenced():
        return Symmetrix(str(extracted / "model.json"), dtype=dtype).evaluator


def _cpu() -> dict[str, Any]:
    """Return what native code depends on: architecture, name, and instruction set of the first processor."""
    found: dict[str, Any] = {"machine": platform.machine(), "model name": "", "flags": frozenset()}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name in found:
                found[name] = frozenset(value.split()) if name == "flags" else value
    return found


def _digest(*parts: object) -> str:
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=12).hexdigest()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep the library's remarks to its developers out of the log."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # logging.warning() sets one up, even if it is silent
