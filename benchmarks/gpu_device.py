"""Which GPU this is, in which state, and with which software: for benchmarks/gpu.py."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "torch",
    "mace-torch",
    "e3nn",
    "numpy",
    "vesin",
    "cuequivariance-torch",
    "cuequivariance-ops-torch-cu12",
    "cuequivariance-ops-torch-cu13",
)

FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "ecc": "ecc.mode.current",
    "ecc_errors": "ecc.errors.uncorrected.volatile.total",
    "mig": "mig.mode.current",
    "compute_mode": "compute_mode",
    "persistence": "persistence_mode",
    "power_limit": "power.limit",
    "max_clock_sm": "clocks.max.sm",
    "max_clock_memory": "clocks.max.memory",
}
"""What is fixed while a program runs -> what nvidia-smi calls it."""

STATE = {
    "clock_sm": "clocks.sm",
    "power": "power.draw",
    "temperature": "temperature.gpu",
    "throttled": "clocks_event_reasons.active|clocks_throttle_reasons.active",
}
"""What changes under load. `throttled` is a bit mask: 0 or 1 (idle) is full speed, 4 the power limit. Names that differ
between drivers stand side by side."""


def describe(device: str) -> dict[str, Any]:
    """Return what is known of a device and of the software on it; with a "problem" if it cannot be used.

    Parameters
    ----------
    device : str
        In torch's notation.
    """
    import torch

    found: dict[str, Any] = {
        "device": device,
        "host_cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": versions(),
        "cuda": torch.version.cuda,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.device(device).type != "cuda":
        return found
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return {**found, "problem": f"torch {torch.__version__} ({build}) finds no GPU here"}
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        return {**found, "problem": f"there is no {device}: torch finds {torch.cuda.device_count()} GPUs"}
    properties = torch.cuda.get_device_properties(index)
    found |= {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "built_for": torch.cuda.get_arch_list(),
    }
    return {**found, "nvidia_smi": query(FIELDS, gpu_id(index))}


def gpu_id(index: int) -> str:
    """Return what nvidia-smi knows a GPU by that torch numbers: the two count differently, and see different ones."""
    import torch

    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    return f"GPU-{uuid}" if uuid and not uuid.startswith(("GPU-", "MIG-")) else uuid


def query(fields: Mapping[str, str], gpu: str = "") -> dict[str, str]:
    """Ask nvidia-smi for the values of fields of one GPU; empty without it. Fields that it does not know are left out.

    Parameters
    ----------
    fields : mapping
        Our name -> nvidia-smi's.
    gpu : str
        Its UUID; where nvidia-smi does not know it (a MIG instance), the first GPU is taken.
    """
    if shutil.which("nvidia-smi") is None:
        return {}
    names = {ours: theirs.split("|") for ours, theirs in fields.items()}
    newest = [alternatives[0] for alternatives in names.values()]
    if values := _ask(newest, gpu) or _ask(newest, ""):
        return dict(zip(fields, values, strict=True))
    found = {}
    for ours, alternatives in names.items():
        answers = (_ask([theirs], which) for theirs in alternatives for which in (gpu, ""))
        if values := next(filter(None, answers), None):
            found[ours] = values[0]
    return found


def _ask(fields: Sequence[str], gpu: str) -> list[str] | None:
    which = ["-i", gpu] if gpu else []
    command = ["nvidia-smi", *which, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.strip().splitlines()
    if answer.returncode != 0 or not lines:
        return None
    values = [value.strip() for value in lines[0].split(",")]
    return values if len(values) == len(fields) else None


def versions() -> dict[str, str]:
    """Return the versions of what the figures depend on, as far as it is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
