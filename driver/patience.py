"""How long ranks wait for each other, before they are configured. Imports nothing that takes time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

PATIENCE_S = 300.0
"""The default of `execution.patience_s`."""


def patience_in(overrides: Sequence[str]) -> float:
    """Return what overrides say of `execution.patience_s`: in seconds; the default where they say nothing."""
    for override in reversed(overrides):
        name, _, value = override.lstrip("+").partition("=")
        if name == "execution.patience_s":
            with contextlib.suppress(ValueError):
                return max(float(value), 1.0)
    return PATIENCE_S
