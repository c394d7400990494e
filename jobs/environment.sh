# Makes a virtual environment with Latdyn in it, or finds that it is there. To be sourced, from the project's root:
#   . jobs/environment.sh; make_environment .venv run,mpi
# Needs Python 3.11 or newer ($PYTHON to choose one) and a package index.

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            command -v "$candidate"
            return
        fi
    done
    echo "latdyn: no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python3" >&2
    return 1
}

holds() { # WHAT-IT-SAYS STAMP EXTRAS
    local extra
    [ "${1% *}" = "$2" ] || return 1
    for extra in ${3//,/ }; do
        case ",${1##* }," in *",$extra,"*) ;; *) return 1 ;; esac
    done
}

make_environment() { # FOLDER EXTRAS
    local folder=$1 extras=$2 python stamp
    # Made anew only when what it is made of changes, or lacks what is wanted.
    stamp=$(cat setup.cfg constraints.txt | cksum)
    if [ -x "$folder/bin/python" ] && holds "$(cat "$folder/.latdyn" 2>/dev/null)" "$stamp" "$extras"; then
        return
    fi
    python=$(find_python) || return 1
    echo "making the environment $folder (a few minutes the first time)"
    if ! "$python" -m venv "$folder" 2>/dev/null; then
        rm -rf "$folder"
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then # Debian keeps venv in a package of its own
            apt-get -qq update && apt-get -qq install -y python3-venv >/dev/null
        fi
        if ! "$python" -m venv "$folder"; then
            echo "latdyn: $python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        fi
    fi
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check --upgrade pip -c constraints.txt || return 1
    # torch by its exact version first: a range would let the resolver fetch another build.
    case $extras in *run*) "$folder/bin/python" -m pip install -qq "$(grep '^torch==' constraints.txt)" || return 1 ;; esac
    "$folder/bin/python" -m pip install -qq -c constraints.txt -e ".${extras:+[$extras]}" || return 1
    echo "$stamp $extras" >"$folder/.latdyn"
}
