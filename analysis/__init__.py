"""Reduces an archive to stability metrics. Needs numpy, h5py, ase, phonopy, scipy, pandas; never torch, mace or MPI."""
