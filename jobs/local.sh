#!/usr/bin/env bash
# Quick start on one machine: sets everything up, runs a campaign on MPI and writes its report.
#
#   bash jobs/local.sh                                     the campaign `demo`
#   bash jobs/local.sh campaign=smoke name=mine            any overrides of `python -m driver run`
#   bash jobs/local.sh name=mine materials=structures "materials.structures=[crystals/*.cif]" model=mace-mpa-0
#   WORKERS=8 bash jobs/local.sh ...                       ranks that compute (default: one per core)
#
# Paths are relative to where it is typed, and the campaign is written there, to runs/<name>/.
# Interrupt it (Ctrl-C) and run it again: it goes on where it was.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2

fail() {
    echo "latdyn: $*" >&2
    exit 2
}

for argument in "$@"; do
    case $argument in
    -h | --help)
        sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$root/jobs/local.sh"
        exit
        ;;
    esac
done

. "$root/jobs/environment.sh"
(cd "$root" && make_environment .venv run,mpi,fast) || exit 2
bin=$root/.venv/bin
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 # Latdyn, not what is called so in this folder
[ -x "$bin/mpirun" ] || fail "$bin/mpirun is missing; remove $root/.venv and run this again, or use an MPI of your own:" \
    "mpirun -n 5 python -m driver run ..."

cores=$(env -u OMP_NUM_THREADS nproc)
workers=${WORKERS:-$cores}
case $workers in *[!0-9]* | 0*) fail "WORKERS=$workers: give the number of ranks that compute, as WORKERS=$cores" ;; esac
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Without materials of the user's own it is the demo.
own=
for argument in "$@"; do
    case ${argument#+} in campaign=* | materials=* | materials.* | --config-dir*) own=1 ;; esac
done
[ -n "$own" ] || set -- campaign=demo "$@"

# What is wrong is said here in a line; under mpirun its own report of a rank that ended with an error would bury it.
"$bin/python" -m driver plan "$@" >/dev/null || exit $?
archive=$("$bin/python" -m driver plan --archive "$@") || exit $?

# With fault tolerance (ULFM) the campaign goes on when a worker dies.
launch=("$bin/mpirun" --with-ft ulfm --bind-to none --oversubscribe -n $((1 + workers)))
[ "$(id -u)" = 0 ] && launch+=(--allow-run-as-root)

# mpirun answers SIGINT and SIGTERM by killing its ranks at once, but passes SIGUSR1 on: with that they finish what they
# have begun. In a session of its own it does not see the terminal's Ctrl-C.
setsid "${launch[@]}" "$bin/python" -m driver run "$@" &
mpirun=$!
interrupted= asked=
drain() { # REASON
    interrupted=1 asked=1
    echo "latdyn: $1: finishing what has begun; once more to leave that too" >&2
    kill -USR1 $mpirun 2>/dev/null
}
trap 'drain Ctrl-C' INT
trap 'drain SIGTERM' TERM
trap 'drain SIGUSR1' USR1
while :; do
    interrupted=
    wait $mpirun
    code=$?
    [ -z "$interrupted" ] && break # else a signal ended the wait, not the run
done
trap - INT TERM USR1
# Ranks that a signal ends while they start look like a success to a fault-tolerant mpirun.
if [ -n "$asked" ] && [ "$code" -le 1 ] && ! tail -n 3 "$(dirname "$archive")/driver.log" 2>/dev/null | grep -q ": finished in"; then
    exit 75
fi
[ "$code" -gt 1 ] && exit "$code"

report=$(dirname "$archive")/report
"$bin/python" -m analysis report "$archive" -o "$report" || exit $?
exit "$code"
