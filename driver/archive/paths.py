"""Paths as users type them. Imports nothing that takes time."""

from __future__ import annotations

from pathlib import Path


def user_path(text: str) -> Path:
    """Return the path that a user has typed; shells leave a `~` after `=` or in quotes to the program.

    Raises
    ------
    ValueError
        If there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
