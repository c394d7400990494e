"""Speed of molecular dynamics: Latdyn against what a user would take instead, in one run.

python -m benchmarks.engine [--models demo small medium mpa] [--atoms 40 80 320] [--dtypes float32 float64] ...
python -m benchmarks.engine --quick --json FILE      # the small model and 80 atoms only, in less than three minutes
python -m benchmarks.engine --displacements          # displacement forces and force constants per material
python -m benchmarks.engine --json FILE --docs       # all (an hour or two), and the tables of docs/performance.md

Each contender is a process of its own with one thread that integrates Langevin dynamics at 300 K in steps of 2 fs from
the same crystal. They take turns of a few steps, so that whatever else the machine does meets all of them; a figure is
the median over the turns. Needs the environment of benchmarks/requirements.txt.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine_contenders import CONTENDERS
from benchmarks.engine_report import Case, Figure, print_table, write_docs, write_json

QUICK = {"models": ["small"], "atoms": [80], "dtypes": ["float32"], "turns": 3, "turn_s": 1.0}
MODULES = {"dynamics": "benchmarks.engine_contenders", "displacements": "benchmarks.displacement_contenders"}
TURN_S = 2.0
"""Length of a turn, in which a contender does as many steps as fit, at least two; or one material."""
CASE_S = 60.0
"""After this time no more turns are begun, once there are three."""


class Process:
    """A contender, ready to run steps when it is told to."""

    def __init__(self, contender: str, case: Case, folder: Path) -> None:
        self.contender = contender
        self.times_ms: list[float] = []
        self.failure = ""
        self._least = self._steps = 2 if case.work == "dynamics" else 1
        arguments = [contender, str(folder / f"{case.model}.model"), str(case.atoms), case.dtype, str(folder)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", MODULES[case.work], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=folder,
            env={**os.environ, **one, "OMP_PROC_BIND": "false", "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def ready(self) -> bool:
        """Wait until it has loaded, compiled and warmed up."""
        return self._answer() is not None

    def turn(self, turn_s: float) -> None:
        """Run a turn of about so long and note its time per step."""
        self._say(str(self._steps))
        seconds = self._answer()
        if seconds is not None:
            self.times_ms.append(1e3 * seconds / self._steps)
            self._steps = max(self._least, min(200, round(turn_s * self._steps / seconds)))

    def end(self) -> None:
        """Let it go."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def figure(self) -> Figure:
        """Return what was measured; the first turn, which found out how many steps fit, does not count."""
        times = self.times_ms[1:]
        if len(times) < 2:
            return Figure(self.contender, None, failure=self.failure or "no turns")
        low, _, high = statistics.quantiles(times, n=4)
        return Figure(self.contender, statistics.median(times), (low, high))

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def _answer(self) -> float | None:
        """Return the seconds that it reports; libraries may print other lines before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        self._process.wait()
        self._log.seek(0)
        self.failure = (self._log.read().strip().splitlines() or ["ended without a word"])[-1]
        return None


def measure(case: Case, contenders: Sequence[str], turns: int, turn_s: float, folder: Path) -> list[Figure]:
    """Measure all contenders on a case, taking turns."""
    everybody = [Process(name, case, folder) for name in contenders]
    for process in everybody:
        process.ready()
    began = time.monotonic()
    for turn in range(turns + 1):
        if turn > 3 and time.monotonic() - began > CASE_S:
            break
        for process in everybody:
            if not process.failure:
                process.turn(turn_s)
    for process in everybody:
        process.end()
    return [process.figure() for process in everybody]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo", "small", "medium", "mpa"])
    parser.add_argument("--atoms", nargs="+", type=int, default=[40, 80, 320], choices=(40, 80, 320))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"], choices=("float32", "float64"))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--displacements", action="store_true", help="force constants of a material instead of steps")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--turn-s", type=float, default=TURN_S, help="length of a turn")
    parser.add_argument("--quick", action="store_true", help="the small model, 80 atoms, float32")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/performance.md")
    options = parser.parse_args()
    if options.quick:
        options = argparse.Namespace(**{**vars(options), **QUICK})
    results: dict[Case, list[Figure]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in options.models:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engine_contenders", "make", model, name]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True)
            for case in _cases(model, options):
                results[case] = measure(case, options.contenders, options.turns, options.turn_s, folder)
                print_table(case, results[case])
                if options.json:
                    write_json(options.json, results)
    if options.docs:
        write_docs(results)


def _cases(model: str, options: argparse.Namespace) -> list[Case]:
    if options.displacements:
        return [Case(model, 80, "float64", "displacements")]
    return [Case(model, atoms, dtype) for atoms in options.atoms for dtype in options.dtypes]


if __name__ == "__main__":
    main()
