"""Soak: ranks of a campaign under the real mpirun are killed or stopped at random, the master included, until it
completes.

python -m benchmarks.signals [--signals 2000] [--ranks 4] [--seed 0] [--patience 4]
python -m benchmarks.signals --real [--signals 50] [--patience 20]      the real worker with the bundled model

In a fifth of the runs one rank gets SIGKILL or SIGSTOP while they start. In the others one or two ranks get one at
random moments in mid-campaign; the others go on for a while, then all get one: a run that has not ended by then,
patience and 15 s later, hangs. After each run every checksum is recomputed, and all that had been committed before must
be there, unchanged; at the end the archive must hold all tasks, and with made-up tasks equal that of an undisturbed
run. Prints the counts; exits 1 if anything was lost or hung.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey
from driver.archive.verify import verify

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ROOT / "tests" / "helpers"
MARGIN_S = 15.0
COMPLETION_S = 600.0
"""An undisturbed run that has not ended after this time hangs."""


@dataclass
class Soak:
    """One campaign, started again and again.

    Attributes
    ----------
    folder : Path
    ranks : int
    patience_s : float
    real : bool
        The real worker instead of made-up tasks.
    size : int
        Materials with made-up tasks, segments with the real worker.
    """

    folder: Path
    ranks: int
    patience_s: float
    real: bool
    size: int
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def archive(self) -> Path:
        """Of the disturbed campaign."""
        return self.folder / "smoke" / "archive.h5" if self.real else self.folder / "archive.h5"

    def start(self, archive: Path, seconds: float) -> subprocess.Popen[bytes]:
        """Start the campaign."""
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        mpirun = [str(Path(sys.executable).parent / "mpirun"), "--with-ft", "ulfm", "--oversubscribe"]
        program = [str(HELPERS / "toy_mpi.py"), str(archive), "--materials", str(self.size), "--seconds", str(seconds)]
        program += ["--patience", str(self.patience_s)]
        if self.real:
            program = ["-m", "driver", "run", "campaign=smoke", f"runs={self.folder}", "execution.device=cpu"]
            program += [f"execution.patience_s={self.patience_s}", "execution.threads=1", "relax.fmax_eV_A=5e-3"]
            program += ["dynamics.equilibration_ps=0.02", "dynamics.segment_ps=0.02"]
            program += [f"dynamics.production_ps={0.02 * self.size:g}"]
        return subprocess.Popen(
            [*mpirun, "--bind-to", "none", *root, "-n", str(self.ranks), sys.executable, *program],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def disturb(self, process: subprocess.Popen[bytes], rng: random.Random) -> float:
        """Send signals to one or two ranks, let the others go on for a while, then to all; or to one while they start.

        Returns
        -------
        float
            Seconds in which the run must end.
        """
        pids = self.wait_for_ranks(process)
        if rng.random() < 0.2 and pids:
            time.sleep(rng.uniform(0.0, 1.0))
            self.send(rng.choice(sorted(pids)), pids, rng)
            return COMPLETION_S  # the others may have come through, and go on
        before, deadline = len(committed(self.archive)), time.monotonic() + 120.0
        while len(committed(self.archive)) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        slow = 8.0 if self.real else 1.0
        for rank in rng.sample(sorted(pids), k=min(len(pids), rng.randint(1, 2))):
            time.sleep(rng.uniform(0.0, 0.8 * slow))
            self.send(rank, pids, rng)
        time.sleep(rng.uniform(0.0, slow * (0.5 if rng.random() < 0.7 else 4.0)))
        for rank in rng.sample(sorted(pids), k=len(pids)):
            self.send(rank, pids, rng)
        return self.patience_s + MARGIN_S

    def send(self, rank: int, pids: dict[int, int], rng: random.Random) -> None:
        """Send SIGKILL or SIGSTOP to a rank that is still there."""
        number = rng.choice((signal.SIGKILL, signal.SIGSTOP))
        if _alive(pids[rank]):
            os.kill(pids[rank], number)
            self.counts[f"{number.name} to {'the master' if rank == 0 else 'workers'}"] += 1
            self.counts["signals"] += 1

    def wait_for_ranks(self, process: subprocess.Popen[bytes]) -> dict[int, int]:
        """Rank -> process; fewer where the run ends before all have come."""
        found: dict[int, int] = {}
        while len(found) < self.ranks and process.poll() is None:
            time.sleep(0.02)
            found = _ranks_below(process.pid)
        return found

    def end(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Wait for the end of a run; count one that hangs."""
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.counts["hung"] += 1
            for pid in (*_ranks_below(process.pid).values(), process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()

    def check(self, before: dict[TaskKey, str]) -> dict[TaskKey, str]:
        """Count what has been lost; return what is committed."""
        now = committed(self.archive)
        self.counts["lost"] += len(verify(self.archive)) if self.archive.exists() else 0
        self.counts["lost"] += sum(now.get(key) != checksum for key, checksum in before.items())
        return now


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TtZX"
    except OSError:
        return False


def _ranks_below(launcher: int) -> dict[int, int]:
    """Rank -> process of those that a launcher has started, from /proc."""
    parents, ranks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    children = [pid for pid, parent in parents.items() if parent == launcher]
    for pid in children:
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((word for word in words if word.startswith(b"OMPI_COMM_WORLD_RANK=")), None)
        if rank is not None:
            ranks[int(rank.partition(b"=")[2])] = pid
    return ranks


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


def main() -> int:
    """Disturb and resume until enough signals have been sent and the campaign is complete."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--signals", type=int, help="at least so many (default: 2000; 50 with --real)")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, help="seconds (default: 4; 20 with --real)")
    parser.add_argument("--real", action="store_true", help="the real worker with the bundled model")
    options = parser.parse_args()
    signals = options.signals or (50 if options.real else 2000)
    patience_s = options.patience or (20.0 if options.real else 4.0)
    size = max(20, signals)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(Path(temporary), options.ranks, patience_s, options.real, size)
        expected: dict[TaskKey, str] = {}
        if not options.real:
            undisturbed = Path(temporary) / "undisturbed.h5"
            soak.start(undisturbed, 0.0).wait()
            expected = committed(undisturbed)
        before: dict[TaskKey, str] = {}
        while soak.counts["signals"] < signals:
            process = soak.start(soak.archive, 0.3)
            soak.end(process, soak.disturb(process, rng))
            soak.counts["runs"] += 1
            before = soak.check(before)
            said = f"{soak.counts['signals']} signals, {len(before)} tasks, lost {soak.counts['lost']}"
            print(f"  {said}, hung {soak.counts['hung']}", file=sys.stderr, flush=True)
        soak.end(soak.start(soak.archive, 0.0), COMPLETION_S)
        final = soak.check(before)
        tasks = expected or dict.fromkeys(final)
        different = sum(final.get(key) != checksum for key, checksum in expected.items())
    counts = soak.counts
    sent = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if what.startswith("SIG"))
    print(f"{len(tasks)} tasks, {counts['runs']} runs, {counts['signals']} signals ({sent})")
    print(f"lost: {counts['lost']}; hung: {counts['hung']}; different from an undisturbed run: {different}")
    return 1 if counts["lost"] or different or counts["hung"] else 0


if __name__ == "__main__":
    sys.exit(main())
