"""Warnings of libraries are for those who develop with them: what concerns a user, Latdyn says itself."""

from __future__ import annotations

import logging
import sys
import warnings


def silence_library_warnings() -> None:
    """Show none for the rest of this process, unless Python was told what to show (`python -W`, PYTHONWARNINGS)."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for library in ("matplotlib", "phonopy", "symfc"):
        logging.getLogger(library).setLevel(logging.ERROR)
