#!/bin/sh
# Makes a clone ready: host packages, a virtual environment in .venv, the guest agent.
#
#   tools/setup.sh run     what running guests needs
#   tools/setup.sh test    that, and what the tests and gates need
#
# Starts from Debian's base system, asks nothing, says what it does, and does nothing that is done already.
# The packages are those of src/banger/system/host_packages.py, the Python ones those of pyproject.toml.
set -eu

use=${1:-run}
case $use in
run | test) ;;
*) echo "usage: tools/setup.sh run|test" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi
lists_read=

apt() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@" </dev/null >&2
}

read_lists() {
    [ -z "$lists_read" ] || return 0
    say "reading the package lists"
    apt update
    lists_read=yes
}

# of "a|b|c" the first that this release has
has_candidate() { apt-cache policy "$1" 2>/dev/null | grep -q '^  Candidate: [^(]'; }
choose() {
    for name in $(echo "$1" | tr '|' ' '); do
        if has_candidate "$name"; then echo "$name"; return 0; fi
    done
    return 1
}

install_packages() { # rows of host_packages.py
    command -v apt-get >/dev/null || die "this host has no apt-get; install by hand: $*"
    [ -z "$sudo" ] || command -v sudo >/dev/null || die "run as root, or install sudo; missing: $*"
    names=
    for row in "$@"; do
        name=$(choose "$row") || { read_lists; name=$(choose "$row"); } \
            || die "none of the packages $row is in this host's package lists"
        names="$names $name"
    done
    say "installing$names"
    # lists that are older than the mirror name files that are gone: then, and only then, once more
    # shellcheck disable=SC2086
    apt install --no-install-recommends $names && return 0
    [ -z "$lists_read" ] || die "apt-get could not install$names"
    read_lists
    # shellcheck disable=SC2086
    apt install --no-install-recommends $names || die "apt-get could not install$names"
}

# --- Python -----------------------------------------------------------------------------------------
python_does() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=
for candidate in "${PYTHON:-python3}" /usr/bin/python3; do
    if command -v "$candidate" >/dev/null && python_does "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    install_packages python3 python3-venv
    python=/usr/bin/python3
    python_does "$python" || die "Python 3.11 or newer is needed; $python is $("$python" -V)"
fi

# --- host packages ----------------------------------------------------------------------------------
uses=run
[ "$use" = run ] || uses="run test"
# shellcheck disable=SC2086
rows=$("$python" -I src/banger/system/host_packages.py --missing $uses)
if [ -n "$rows" ]; then
    # shellcheck disable=SC2086
    install_packages $rows
    # shellcheck disable=SC2086
    rows=$("$python" -I src/banger/system/host_packages.py --missing $uses | tr '\n' ' ')
    [ -z "$rows" ] || die "installed, and still not found on this host: $rows"
fi

# --- virtual environment ----------------------------------------------------------------------------
# A stamp says which declaration this environment was made from; one for each use. An environment is bound
# to its interpreter and to its folder: when either has changed, it is made anew.
place="$("$python" -c 'import sys; print(sys.version, sys.executable)' | tr '\n' ' ')$(pwd)"
if [ "$(cat .venv/.made-with 2>/dev/null)" != "$place" ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    say "making the virtual environment .venv"
    "$python" -m venv --clear .venv
    printf '%s' "$place" >.venv/.made-with
fi
declared=$(cksum <pyproject.toml)
made_for() { [ "$(cat ".venv/.made-for-$1" 2>/dev/null)" = "$declared" ]; }
pip_install() { .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off "$@" >&2; }
if ! made_for test && ! made_for "$use"; then
    say "installing the Python packages that pyproject.toml names"
    pip_install 'pip>=25.1' # --group is known from there on
    # the build's own requirements go into .venv too: an isolated build would fetch 100 MB of compiler each time
    # shellcheck disable=SC2046
    pip_install $(
        .venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])'
    )
    set --
    [ "$use" = run ] || set -- --group dev
    pip_install --no-build-isolation -e . "$@"
    printf '%s' "$declared" >".venv/.made-for-$use"
fi

# --- guest agent ------------------------------------------------------------------------------------
.venv/bin/python hatch_build.py
