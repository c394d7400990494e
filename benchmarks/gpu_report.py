"""What benchmarks/gpu.py has found, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


def text(report: Report) -> str:
    """Return the device, a table per part, and what failed."""
    lines = [*_device(report["device"])]
    for name, part in report["parts"].items():
        lines += ["", f"{name}: {'ok' if not part['failures'] else 'FAILED'} ({part['seconds']:.0f} s)"]
        lines += [f"  {line}" for line in TABLES[name](part["rows"])]
    lines += ["", *(f"failed: {failure}" for failure in report["failures"])]
    if not report["failures"]:
        lines.append("nothing failed")
    return "\n".join(lines)


def _device(device: Report) -> Iterator[str]:
    smi = device.get("nvidia_smi", {})
    name = device.get("name", device["host_cpu"])
    memory = f", {device['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in device else ""
    yield f"{device['device']}: {name}{memory}"
    told = {
        "driver": "driver",
        "ecc": "ECC",
        "mig": "MIG",
        "compute_mode": "compute mode",
        "power_limit": "power limit",
    }
    state = [f"{label} {smi[key]}" for key, label in told.items() if key in smi]
    versions = [f"{package} {number}" for package, number in device["versions"].items()]
    yield ", ".join([*state, f"CUDA {device['cuda']}", *versions])


def _campaign(rows: Sequence[Report]) -> Iterator[str]:
    for row in rows:
        if "exit_code" in row:
            yield f"exit code {row['exit_code']} after {row['seconds']:.0f} s: {' '.join(row['overrides'])}"
        if "tasks" in row:
            tasks = ", ".join(
                f"{count} {stage} in {row['seconds_by_stage'][stage]:.0f} s" for stage, count in row["tasks"].items()
            )
            yield f"{tasks}; on {', '.join(row['devices'])}, by {', '.join(row['evaluators'])}"


def _agreement(rows: Sequence[Report]) -> Iterator[str]:
    yield f"{'model':<8}{'precision':<11}{'evaluator':<22}{'energy':>20}{'forces':>20}{'stress':>20}"
    yield f"{'':<41}{'eV/atom (allowed)':>20}{'eV/A (allowed)':>20}{'eV/A^3 (allowed)':>20}"
    for row in rows:
        if "model" in row:
            cells = [row.get(name) for name in ("energy_eV_atom", "forces_eV_A", "stress_eV_A3")]
            told = "".join(f"{_of(cell['difference'], cell['allowed']):>20}" for cell in cells if cell)
            yield f"{row['model']:<8}{row['dtype']:<11}{row['evaluator']:<22}{told or _instead(row)}"


def _exhaustion(rows: Sequence[Report]) -> Iterator[str]:
    for row in rows:
        values = ", ".join(f"{key} {_short(value)}" for key, value in row.items() if key not in ("stage", "failure"))
        yield f"{row.get('stage', '')}: {values or _instead(row)}"


def _speed(rows: Sequence[Report]) -> Iterator[str]:
    yield (
        f"{'model':<7}{'precision':<10}{'evaluator':<22}{'cells':>6}{'force call':>12}{'us/atom':>9}"
        f"{'step':>11}{'us/atom':>9}  {'quartiles':<15}{'MB/atom':>8}{'reserved':>9}{'waits':>6}"
    )
    for row in rows:
        if "model" not in row:
            continue
        begin = f"{row['model']:<7}{row['dtype']:<10}{row['evaluator']:<22}{row['cells']:>6}"
        if "step" not in row:
            yield f"{begin}  {_instead(row)}"
            continue
        call, step = row["force_call"], row["step"]
        low, high = (1e6 * seconds / row["atoms"] for seconds in step["quartiles_s"])
        spread = f"{low:.2f} .. {high:.2f}"
        yield (
            f"{begin}{1e3 * call['median_s']:>9.2f} ms{call['us_per_atom']:>9.2f}{1e3 * step['median_s']:>8.2f} ms"
            f"{step['us_per_atom']:>9.2f}  {spread:<15}{_number(row.get('peak_bytes_per_atom'), 1e-6, 2):>8}"
            f"{_number(row.get('peak_reserved_bytes_per_atom'), 1e-6, 2):>9}{_number(row['waits_per_step'], 1.0, 1):>6}"
        )


def _of(difference: float, allowed: float) -> str:
    return f"{difference:.1e} ({allowed:.1e})"


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _instead(row: Report) -> str:
    return f"FAILED: {row['failure']}" if "failure" in row else f"left out: {row.get('skipped', 'nothing')}"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


TABLES = {"campaign": _campaign, "agreement": _agreement, "exhaustion": _exhaustion, "speed": _speed}
