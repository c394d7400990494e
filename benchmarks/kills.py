"""Soak: ranks of a campaign under the real mpirun are killed at random, the master included, until it completes.

python -m benchmarks.kills [--kills 200] [--ranks 4] [--seed 0]

After each run every checksum is recomputed, and all that had been committed before must be there, unchanged; at the end
the archive must equal that of an undisturbed run. Prints the counts; exits 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey
from driver.archive.verify import verify

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "helpers" / "toy_mpi.py"
PATIENCE_S = 600.0
"""A run that has not ended after this time hangs."""


def campaign(archive: Path, ranks: int, materials: int, seconds: float) -> subprocess.Popen[str]:
    """Start a campaign of made-up tasks."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    path = os.pathsep.join([str(ROOT), str(SCRIPT.parent)])
    mpirun = [str(Path(sys.executable).parent / "mpirun"), "--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none"]
    options = [str(archive), "--materials", str(materials), "--seconds", str(seconds)]
    return subprocess.Popen(
        [*mpirun, *root, "-n", str(ranks), sys.executable, str(SCRIPT), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def pids(process: subprocess.Popen[str], ranks: int) -> dict[int, int]:
    """Rank -> process, as they print them on starting."""
    found: dict[int, int] = {}
    assert process.stdout is not None
    while len(found) < ranks and (line := process.stdout.readline()):
        if match := re.match(r"rank (\d+) is (\d+)", line):
            found[int(match[1])] = int(match[2])
    return found


def committed(archive: Path) -> dict[TaskKey, str]:
    """Done task -> checksum of all that it has stored."""
    try:
        with open_archive(archive) as view:
            rows = view.table("tasks")
    except ArchiveError:
        return {}
    columns = (rows[name] for name in ("material", "model", "stage", "segment", "status", "checksum"))
    return {
        TaskKey(material, model, stage, int(segment)): checksum
        for material, model, stage, segment, status, checksum in zip(*columns, strict=True)
        if status == "done"
    }


def kill(process: subprocess.Popen[str], ranks: dict[int, int], kills: dict[int, int], rng: random.Random) -> None:
    """Kill one or two ranks, let the others go on for a while, then kill them too."""
    for rank in rng.sample(sorted(ranks), k=rng.randint(1, 2)):
        time.sleep(rng.uniform(0.0, 0.8))
        kills[rank] += killed(process, ranks[rank])
    time.sleep(rng.uniform(0.0, 0.5 if rng.random() < 0.7 else 4.0))
    kill_all(process, ranks, kills)


def kill_all(process: subprocess.Popen[str], ranks: dict[int, int], kills: dict[int, int]) -> None:
    """Kill every rank that is still there."""
    for rank, pid in ranks.items():
        kills[rank] += killed(process, pid)


def killed(process: subprocess.Popen[str], pid: int) -> bool:
    """Kill a rank; return whether it was there."""
    state = Path(f"/proc/{pid}/stat")
    if process.poll() is not None or not state.exists() or ") Z " in state.read_text():
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def main() -> int:
    """Kill and resume until the campaign is complete."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="at least so many; sets the size of the campaign")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    materials = max(4, options.kills)
    kills = dict.fromkeys(range(options.ranks), 0)
    runs = lost = hangs = 0
    with tempfile.TemporaryDirectory() as temporary:
        archive, undisturbed = Path(temporary) / "archive.h5", Path(temporary) / "undisturbed.h5"
        campaign(undisturbed, options.ranks, materials, 0.0).communicate()
        expected = committed(undisturbed)
        before: dict[TaskKey, str] = {}
        while len(before) < len(expected):
            process = campaign(archive, options.ranks, materials, 0.2)
            ranks = pids(process, options.ranks)
            if sum(kills.values()) < options.kills:
                kill(process, ranks, kills, rng)
            try:
                process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                hangs += 1
                kill_all(process, ranks, kills)
                process.communicate()
            runs += 1
            now = committed(archive)
            lost += len(verify(archive)) if archive.exists() else 0
            lost += sum(now.get(key) != checksum for key, checksum in before.items())
            before = now
        wrong = sum(before[key] != checksum for key, checksum in expected.items())
    by_rank = ", ".join(f"rank {rank}: {count}" for rank, count in kills.items())
    print(f"{len(expected)} tasks, {runs} runs, {sum(kills.values())} ranks killed in mid-campaign ({by_rank})")
    print(f"committed results lost or altered: {lost}; different from an undisturbed run: {wrong}; hanging: {hangs}")
    return 1 if lost or wrong or hangs else 0


if __name__ == "__main__":
    sys.exit(main())
