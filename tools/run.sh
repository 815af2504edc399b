#!/bin/sh
# The end of `make run`: boots a guest, shows who it is, and leaves nothing running. BANGER_HOME is set.
set -eu
cd "$(dirname "$0")/.."
banger=.venv/bin/banger

status=0
"$banger" vm run --rm -- sh -c '
    printf "host name: "; hostname
    printf "kernel:    "; uname -sr
    cat /etc/os-release' </dev/null || status=$?
# VMs that someone left running in this home run on; with none left, bridge and taps go with the daemon
"$banger" daemon stop >/dev/null || status=$?
exit "$status"
