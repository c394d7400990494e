"""Runs lattice-dynamics campaigns: distributes tasks over ranks and commits their results to one archive."""

__version__ = "0.1.0"
