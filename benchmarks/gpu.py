"""A first check of Latdyn on a GPU, in one command and less than eight minutes.

python -m benchmarks.gpu [--json gpu-check.json]       # on any machine with an NVIDIA GPU
python -m benchmarks.gpu --quick                       # the same with tiny sizes
python -m benchmarks.gpu --quick --device cpu          # without a GPU: does this program itself work

Four parts, each in a process of its own, so that none stops another:

campaign    Does the demo campaign run on the GPU, through the real `driver run`?
agreement   Are energies, forces and stresses those of the reference in double precision on the CPU?
exhaustion  Do displacements and dynamics go on when memory runs out, with the right results?
speed       How long do a force call and a whole step of dynamics take, and how much memory, for 1, 8, 64 and 512
            crystals of 80 atoms? Whatever does not fit into the time or the memory that is left is left out, and named.

Ends with tables, a JSON file, and a line for each failure. Exit codes: 0 all is well, 1 something failed, 2 there is no
GPU (or the command line is wrong).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import agreement, campaign
from benchmarks.gpu_device import describe
from benchmarks.gpu_memory import exhaustion
from benchmarks.gpu_plan import FULL, QUICK, Context, Part, Plan, Row
from benchmarks.gpu_report import text
from benchmarks.gpu_speed import speed

PARTS: dict[str, Part] = {"campaign": campaign, "agreement": agreement, "exhaustion": exhaustion, "speed": speed}
"""In the order in which they run; the last one takes the time that is left."""
SPARE_S = 20.0
"""Before a part is stopped from outside, for the case that it is at."""
DESCRIPTION_S = 120.0
"""For finding out what the device is: torch is loaded from a slow file system, nvidia-smi wakes the GPU."""
EXIT_FAILED, EXIT_NO_GPU = 1, 2


def device(context: Context) -> Iterator[Row]:
    """Describe the device; in a process of its own, since a GPU may be set to admit one at a time."""
    yield describe(context.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, or be one of them; return the exit code."""
    options = _options(arguments)
    plan = QUICK if options.quick else FULL
    if options.part:
        _be(options.part, plan, options.device, options.folder, options.left_s)
        return 0
    end_s = time.monotonic() + plan.limit_s
    with tempfile.TemporaryDirectory() as name:
        found = run_part("device", Path(name), options, DESCRIPTION_S)
        problem = next(iter(found["failures"]), "") or found["rows"][0].get("problem")
        if problem:
            print(f"{problem}; --device cpu --quick tries this program without one", file=sys.stderr)
            return EXIT_NO_GPU
        report: dict[str, Any] = {"device": found["rows"][0], "quick": options.quick, "parts": {}, "failures": []}
        for part in options.parts:
            left_s = min(end_s - time.monotonic(), plan.part_limits_s.get(part, float("inf")))
            print(f"{part} ...", file=sys.stderr, flush=True)
            found = run_part(part, Path(name), options, left_s)
            report["parts"][part] = found
            report["failures"] += [f"{part}: {failure}" for failure in found["failures"]]
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(text(report))
    print(f"figures: {options.json}")
    return EXIT_FAILED if report["failures"] else 0


def run_part(part: str, folder: Path, options: argparse.Namespace, left_s: float) -> dict[str, Any]:
    """Run a part in a process of its own and return what it has found until it ended, or was stopped."""
    rows = folder / f"{part}.jsonl"
    log = folder / f"{part}.log"
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--folder", str(folder)]
    command += ["--device", options.device, "--left-s", f"{left_s - SPARE_S:.0f}", *(["--quick"] * options.quick)]
    began = time.monotonic()
    late = False
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(max(1.0, left_s))
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:  # also what it has started itself
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()] if rows.exists() else []
    failures = [described(row) for row in found if "failure" in row]
    if late:
        failures.append(f"stopped after {left_s:.0f} s")
    elif process.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
        failures.append(f"its process ended with {process.returncode}: {said[-1]}")
    return {"seconds": time.monotonic() - began, "failures": failures, "rows": found}


def described(row: Row) -> str:
    """Return a failure and what failed in one line."""
    what = [str(row[key]) for key in ("stage", "model", "dtype", "evaluator", "cells") if key in row]
    return f"{', '.join(what)}{': ' if what else ''}{' '.join(str(row['failure']).split())}"


def _be(part: str, plan: Plan, where: str, folder: Path, left_s: float) -> None:
    """Run a part in this process and write its findings, line by line; what it raises is a finding, too."""
    warnings.filterwarnings("ignore")
    run = {"device": device, **PARTS}[part]
    context = Context(where, plan, folder, time.monotonic() + left_s)
    with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as stream:
        try:
            for row in run(context):
                stream.write(json.dumps(row) + "\n")
                stream.flush()
        except Exception as error:
            failure = {"failure": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            stream.write(json.dumps(failure) + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help='"cuda", "cuda:1", or "cpu" to try this program without a GPU')
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="default: %(default)s")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--left-s", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
