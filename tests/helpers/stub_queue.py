"""Batch systems that are only commands on PATH, with prepared answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

VARIABLES = ("SLURM", "PBS", "LSB", "FLUX")


def stub(monkeypatch: pytest.MonkeyPatch, folder: Path, answers: Mapping[str, tuple[str, str, int]]) -> Path:
    """Put commands first on PATH that answer.

    Parameters
    ----------
    monkeypatch : MonkeyPatch
    folder : Path
        For the commands, and for the file `asked` with what they were asked.
    answers : mapping
        Command line, or its beginning -> output, errors, exit code. A command that has no answer to what it is asked
        ends with 99.
    """
    folder.mkdir(exist_ok=True)
    for program in {line.split()[0] for line in answers}:
        cases = []
        for number, (line, (output, errors, code)) in enumerate(sorted(answers.items(), reverse=True)):
            if line.split()[0] != program:
                continue
            (folder / f"{number}.out").write_text(output)
            (folder / f"{number}.err").write_text(errors)
            cases.append(f"'{line}'*) cat {folder}/{number}.out; cat {folder}/{number}.err >&2; exit {code};;")
        script = folder / program
        body = "\n".join(cases)
        script.write_text(
            f'#!/bin/sh\nasked="{program} $*"\necho "$asked" >> {folder}/asked\n'
            f'case "$asked" in\n{body}\nesac\nexit 99\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")
    return folder / "asked"


def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this process out of any job."""
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)


def slurm_job(number: str, state: str, restarts: int = 0) -> str:
    """One line of `scontrol --oneliner show job`."""
    return f"JobId={number} JobName=a b UserId=me(1) JobState={state} Reason=None Requeue=1 Restarts={restarts} End=x\n"


SLURM_HERE = {"scontrol show config": ("Configuration data as of now\nClusterName             = here\n", "", 0)}
"""What any Slurm answers."""
