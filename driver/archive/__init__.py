"""The archive: one HDF5 file with transactions. Needs only numpy and h5py."""
