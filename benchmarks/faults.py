"""Soak of the archive: kills, power losses, flipped bits, by the hundred and thousand, with counts.

python -m benchmarks.faults [--quick] [--seed 0] [--kills 300] [--campaign-kills 60] [--images 3000] [--flips 5000]
python -m benchmarks.faults --matrix [--docs]

Counts what was lost of what had been committed: nothing, or it exits with 1. `benchmarks.signals` does the same to the
ranks of a campaign under the real mpirun, at random. `--matrix` kills, and stops, one rank in each phase of a campaign
under each launcher (mpirun with and without fault tolerance, srun with PMIx and PMI-2 on a Slurm of its own) and says
how the run ended; `--docs` writes the table to docs/faults.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import fault_table
import soaks


def main() -> int:
    """Run the soaks; return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute or two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--segments", type=int, default=20, help="length of the recorded run")
    parser.add_argument("--images", type=int, default=3000, help="power losses")
    parser.add_argument("--flips", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=300, help="of a process that commits")
    parser.add_argument(
        "--campaign-kills", type=int, default=60, help="of a campaign, master and worker in one process"
    )
    parser.add_argument("--materials", type=int, default=40, help="in that campaign")
    parser.add_argument("--matrix", action="store_true", help="ranks killed and stopped in each phase, each launcher")
    parser.add_argument("--docs", action="store_true", help="write its table to docs/faults.md")
    options = parser.parse_args()
    if options.matrix:
        return fault_table.main(write=options.docs)
    if options.quick:
        options.segments, options.images, options.flips = 3, 100, 200
        options.kills, options.campaign_kills, options.materials = 10, 4, 6

    def say(text: str) -> None:
        print(f"    {text}", file=sys.stderr, flush=True)

    ways: dict[str, Callable[[Path], Counter[str]]] = {
        "killed after every operation": lambda folder: soaks.replay_prefixes(folder, options.segments),
        "power lost": lambda folder: soaks.lose_power(folder, options.segments, options.images, options.seed),
        "bits flipped": lambda folder: soaks.flip_bytes(folder, options.flips, options.seed),
        "writers killed": lambda folder: soaks.kill_writers(folder, options.kills, options.seed, say),
        "campaigns killed": lambda folder: soaks.kill_campaigns(
            folder, options.campaign_kills, options.materials, options.seed, say
        ),
    }
    bad = 0
    for name, soak in ways.items():
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            counts = soak(Path(folder))
        bad += counts["lost"] + counts["unnoticed"] + counts["different"]
        described = ", ".join(f"{count} {what}" for what, count in counts.items() if what != "lost")
        print(f"{name}: {described}; {counts['lost']} lost ({time.perf_counter() - start:.0f} s)", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
