#!/bin/bash
# Installs the Slurm that tests/slurm needs, from Debian's or Ubuntu's packages; quick when it is there. Exits non-zero,
# with one line that says why, where it cannot. MPICH (its library only) is for the tests of srun --mpi=pmi2; without it
# they are skipped.
set -uo pipefail
export PATH=$PATH:/usr/sbin:/sbin

programs="munged slurmctld slurmd srun sbatch scontrol"
missing() {
    for program in $programs; do
        command -v "$program" >/dev/null || return 0
    done
    # Slurm's PMIx plugin opens libpmix.so, which Debian keeps in the development package.
    [ -z "$(find /usr/lib/*/pmix* -name libpmix.so 2>/dev/null)" ]
}

missing || exit 0
if ! command -v apt-get >/dev/null; then
    echo "latdyn: Slurm is not installed, and there is no apt-get to install it with" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "latdyn: Slurm is not installed, and only root can install and start it" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { apt-get -qq install -y --no-install-recommends "$@" >"$log" 2>&1; }
# Services that the packages would start are of no use: the tests start their own.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f "$log" /usr/sbin/policy-rc.d' EXIT
fi
apt-get -qq update >"$log" 2>&1
if ! install slurm-wlm munge libpmix2 libpmix-dev; then
    echo "latdyn: apt-get cannot install slurm-wlm, munge and libpmix-dev: $(tail -n 1 "$log")" >&2
    exit 1
fi
install libmpich12 || echo "latdyn: no libmpich12 here; the tests of srun --mpi=pmi2 will be skipped" >&2
if missing; then
    echo "latdyn: the packages are installed, but without all of: $programs, libpmix.so" >&2
    exit 1
fi
