"""What a campaign will need, before anything is measured."""

from __future__ import annotations

import numpy as np

from driver.settings import DynamicsSettings
from driver.tasks import TaskSpec


def archive_bytes(spec: TaskSpec, dynamics: DynamicsSettings) -> float:
    """Estimate what a task adds to the archive: its arrays, and a few kilobytes of groups and rows."""
    overhead = 8e3
    if spec.key.stage == "dynamics":
        frames = dynamics.segment_steps // dynamics.frame_steps
        width = np.dtype(dynamics.frame_dtype).itemsize
        return overhead + spec.size.atoms * (frames * 9 * width + 6 * 8)
    if spec.key.stage == "displace":
        return 4 * overhead + spec.size.atoms * (6 * 8 + 250)  # displacements, forces, the YAML text, force constants
    return 3 * overhead + spec.size.atoms * 100


def size_text(count: float) -> str:
    """Write a number of bytes as people say it: 0.5 MB, 12 GB, 3.4 TB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if count >= factor:
            return f"{count / factor:.{0 if count >= 10 * factor else 1}f} {unit}"
    return f"{count / 1e6:.2g} MB"
