"""Soak of locks: processes on nodes that each grant every lock start at the same moment, and some are killed.

python -m benchmarks.locks [--starts 200] [--processes 8] [--nodes 4] [--seed 0]

Counts how often two held the writer's lock of an archive at a time, or nobody could take it any more; and how often a
prepared model was lost while it was being made, or came out wrong. Exits with 1 if any of these is not 0. Then times
taking and giving back a lock that nobody else wants.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import nodes

from driver.archive.lock import WriterLock


def main() -> int:
    """Run the storms; return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=200, help="of each kind")
    parser.add_argument("--processes", type=int, default=8, help="that start at the same moment")
    parser.add_argument("--nodes", type=int, default=4, help="that they are spread over")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bad = 0
    storms = {"writer's lock": nodes.lock_storm, "prepared models": nodes.cache_storm}
    wrong = {"double", "stuck", "nobody", "broken", "lost", "twice", "left over"}
    for name, storm in storms.items():
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            counts = storm(
                Path(folder),
                options.starts,
                processes=options.processes,
                nodes=options.nodes,
                seed=options.seed,
            )
        bad += sum(counts[what] for what in wrong)
        described = ", ".join(f"{count} {what}" for what, count in counts.items())
        print(f"{name}: {described} ({time.perf_counter() - began:.0f} s)", flush=True)
    print(f"taking and giving back a lock that nobody wants: {1e3 * _quiet_s():.1f} ms")
    return 1 if bad else 0


def _quiet_s() -> float:
    """Median time in seconds of taking a lock and giving it back, with fsync, in the current folder."""
    times = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for _ in range(20):
            began = time.perf_counter()
            WriterLock(Path(folder) / "archive.h5").release()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
