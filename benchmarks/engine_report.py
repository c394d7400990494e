"""What benchmarks/engine.py has measured: as a table, as JSON, and in docs/performance.md."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- figures of benchmarks/engine.py -->", "<!-- end of figures -->"
PACKAGES = ("torch", "mace-torch", "ase", "symmetrix-xl", "torch-sim-atomistic", "janus-core")


@dataclass(frozen=True)
class Case:
    """What is measured: a model, a crystal, a precision, and whether steps of dynamics or force constants."""

    model: str
    atoms: int
    dtype: str
    work: str = "dynamics"

    def __str__(self) -> str:
        return f"{self.model}, {self.atoms} atoms, {self.dtype}{self.unit}"

    @property
    def unit(self) -> str:
        """What a time is for, where it is not for a step."""
        return ", force constants of a material" if self.work == "displacements" else ""


@dataclass(frozen=True)
class Figure:
    """Milliseconds of a contender: median, and quartiles over the turns; or why there is none."""

    contender: str
    median_ms: float | None
    quartiles_ms: tuple[float, float] | None = None
    failure: str = ""


_KEY = {"dynamics": "ms_per_step", "displacements": "ms_per_material"}

Results = Mapping[Case, Sequence[Figure]]


def print_table(case: Case, figures: Sequence[Figure]) -> None:
    """Print one case: each contender's time, and how many times faster Latdyn's evaluators are."""
    own = {f.contender: f.median_ms for f in figures if f.contender.startswith("latdyn")}
    print(f"\n{case}")
    print(f"{'':<22}{'ms':>9} {'quartiles':>17} {'vs torch':>9} {'vs symmetrix':>13}")
    for figure in figures:
        if figure.median_ms is None or figure.quartiles_ms is None:
            print(f"{figure.contender:<22}{'-':>9}   {figure.failure[:90]}")
            continue
        ratios = [
            f"{figure.median_ms / ours:.2f}x" if (ours := own.get(name)) else "-"
            for name in ("latdyn-torch", "latdyn-symmetrix")
        ]
        spread = f"{figure.quartiles_ms[0]:.1f} .. {figure.quartiles_ms[1]:.1f}"
        print(f"{figure.contender:<22}{figure.median_ms:>9.1f} {spread:>17} {ratios[0]:>9} {ratios[1]:>13}")
    sys.stdout.flush()


def write_json(path: Path, results: Results) -> None:
    """Write all figures, and what they were measured with."""
    cases = [
        {
            **asdict(case),
            _KEY[case.work]: {f.contender: f.median_ms for f in figures},
            "quartiles_ms": {f.contender: f.quartiles_ms for f in figures},
            "failures": {f.contender: f.failure for f in figures if f.failure},
        }
        for case, figures in results.items()
    ]
    path.write_text(json.dumps({"machine": machine(), "versions": versions(), "cases": cases}, indent=1) + "\n")


def read_json(path: Path) -> dict[Case, list[Figure]]:
    """Read what `write_json` has written."""
    results = {}
    for entry in json.loads(path.read_text())["cases"]:
        results[Case(entry["model"], entry["atoms"], entry["dtype"], entry["work"])] = [
            Figure(name, median, entry["quartiles_ms"][name], entry["failures"].get(name, ""))
            for name, median in entry[_KEY[entry["work"]]].items()
        ]
    return results


def write_docs(results: Results) -> None:
    """Replace the tables of docs/performance.md."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}", encoding="utf-8")


def markdown(results: Results) -> str:
    """Return one table per model: milliseconds, and how many times longer than Latdyn's."""
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    lines = [
        f"{machine()}; {used}. Milliseconds per step, or for the force constants of a material; one thread.",
        "",
    ]
    for model in dict.fromkeys(case.model for case in results):
        own = {case: figures for case, figures in results.items() if case.model == model}
        names = list(dict.fromkeys(f.contender for figures in own.values() for f in figures))
        lines += [f"**{model}**", "", f"| atoms, precision | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
        for case, figures in own.items():
            found = {f.contender: f.median_ms for f in figures}
            cells = [f"{ms:.1f}" if (ms := found.get(name)) is not None else "-" for name in names]
            lines.append(f"| {case.atoms}, {case.dtype}{case.unit} | {' | '.join(cells)} |")
        lines.append("")
        for work, what in (("dynamics", "steps"), ("displacements", "force constants")):
            lines += _ratios({case: figures for case, figures in own.items() if case.work == work}, what)
        lines.append("")
    return "\n".join(lines)


def _ratios(results: Results, what: str) -> list[str]:
    """Say how Latdyn compares, as ranges over the cases of a model."""
    torch, fast, library = [], [], []
    for figures in results.values():
        ms = {f.contender: f.median_ms for f in figures if f.median_ms is not None}
        others = [ms[name] for name in ("ase-mace", "torch-sim", "janus") if name in ms]
        if "latdyn-torch" in ms and "ase-mace" in ms:
            torch.append(ms["ase-mace"] / ms["latdyn-torch"])
        if "latdyn-symmetrix" in ms and others:
            fast.append(min(others) / ms["latdyn-symmetrix"])
        if "latdyn-symmetrix" in ms and "ase-symmetrix" in ms:
            library.append(ms["ase-symmetrix"] / ms["latdyn-symmetrix"])
    told = (
        ("torch against ASE with mace-torch", torch),
        ("symmetrix against the best of ASE, torch-sim and janus-core", fast),
        ("symmetrix against symmetrix-xl's own calculator", library),
    )
    return [f"- {what}, {name}: {_range(found)} times faster" for name, found in told if found]


def _range(found: Sequence[float]) -> str:
    low, high = f"{min(found):.1f}", f"{max(found):.1f}"
    return low if low == high else f"{low} to {high}"


def machine() -> str:
    """Describe the processor."""
    name = platform.processor() or platform.machine()
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name = fields.get("model name", name)
        flags = ", AVX-512" if "avx512f" in fields.get("flags", "").split() else ""
    return f"{name}{flags}"


def versions() -> dict[str, str]:
    """Return the versions of all contenders."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":  # python -m benchmarks.engine_report FILE ...: the tables again, from their JSON
    write_docs({case: figures for name in sys.argv[1:] for case, figures in read_json(Path(name)).items()})
