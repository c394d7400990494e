"""The matrix of faults under every launcher that this machine has, as a table."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_matrix import MARGIN_S, PATIENCE_S, PLAIN, ULFM, Case, Ending, Launcher, cases, slurm_launchers, try_case
from slurm_cluster import NoSlurmError, SlurmCluster, mpich_environment

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("<!-- table -->", "<!-- end of the table -->")


@contextmanager
def launchers() -> Iterator[list[Launcher]]:
    """mpirun, and srun where a Slurm can be started."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = SlurmCluster(folder)
    try:
        found = [ULFM, PLAIN]
        try:
            cluster.start()
            (folder / "mpich").mkdir()
            found += slurm_launchers(cluster, mpich_environment(folder / "mpich"))
        except NoSlurmError as error:
            print(f"without Slurm: {error}", flush=True)
        yield found
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def cell(ending: Ending) -> str:
    """How a run ended, in a few characters."""
    if ending.hung:
        return "**hung**"
    text = "done" if ending.all_done else str(ending.code)
    text += f", {ending.seconds:.0f} s"
    return text if ending.good else f"**{text}, {ending.lost} lost**"


def main(*, write: bool) -> int:
    """Try all cases and print the table; return how many were bad."""
    bad = 0
    with launchers() as found:
        rows: dict[Case, list[str]] = {case: [] for case in cases()}
        for launcher in found:
            for case, cells in rows.items():
                with tempfile.TemporaryDirectory() as folder:
                    ending = try_case(case, launcher, Path(folder))
                bad += not ending.good
                cells.append(cell(ending))
                print(f"{launcher.name:24} {case!s:44} {cells[-1]}", flush=True)
                if not ending.good:
                    print(ending.output)
    lines = [f"| | {' | '.join(f'`{launcher.name}`' for launcher in found)} |", "|---|" + "---|" * len(found)]
    lines += [f"| {case} | {' | '.join(cells)} |" for case, cells in rows.items()]
    lines += [
        "",
        f"{len(rows) * len(found)} runs, {bad} bad; patience {PATIENCE_S:.0f} s, to end within {MARGIN_S:.0f} s more.",
    ]
    table = "\n".join(lines)
    print(table)
    if write:
        page = ROOT / "docs" / "faults.md"
        before, _, rest = page.read_text().partition(MARKS[0])
        page.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    return min(bad, 1)
