"""Where materials come from: prototypes, readers, tolerance factors. Needs no torch and no MPI."""
