"""When the run must end: from a setting, or from Slurm."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime

from driver.errors import UsageError


def ask_slurm(job: str) -> str:
    """Return the end of a job as `squeue` prints it, local time; "" if it cannot be asked."""
    try:
        result = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%e"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


def end_of_run_s(
    setting: str | None,
    environment: Mapping[str, str],
    *,
    now_s: float | None = None,
    ask: Callable[[str], str] = ask_slurm,
) -> float | None:
    """Find out when this run will be ended.

    Parameters
    ----------
    setting : str or None
        Length of the run from now: `HH:MM:SS`, `D-HH:MM:SS` (Slurm's notation), or seconds. None: ask Slurm.
    environment : mapping
        Of this process; SLURM_JOB_END_TIME where this Slurm sets it, else SLURM_JOB_ID for `squeue`.
    now_s : float, optional
        Seconds since the epoch.
    ask : callable
        Job id -> end time as text.

    Returns
    -------
    float or None
        Seconds since the epoch; None if nothing says when.

    Raises
    ------
    UsageError
        If the setting is no length of time.
    """
    now_s = time.time() if now_s is None else now_s
    if setting is not None:
        return now_s + parse_duration_s(setting)
    if environment.get("SLURM_JOB_END_TIME", "").isdigit():
        return float(environment["SLURM_JOB_END_TIME"])
    if "SLURM_JOB_ID" in environment:
        try:
            return datetime.fromisoformat(ask(environment["SLURM_JOB_ID"])).timestamp()
        except ValueError:
            return None  # no limit, or no Slurm to ask
    return None


def parse_duration_s(text: str) -> float:
    """Convert `D-HH:MM:SS`, `HH:MM:SS`, `MM:SS` or seconds to seconds.

    Raises
    ------
    UsageError
        If the text is none of them.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)", text.strip())
    if match is None:
        raise UsageError(f"execution.walltime = {text!r}: write HH:MM:SS, D-HH:MM:SS or seconds")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds
