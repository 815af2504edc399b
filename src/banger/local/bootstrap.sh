#!/bin/sh
# banger runs this in a guest, as root, when a repository that names its tools has been brought in
# (docs/workspaces.md, "Tools"):
#
#   bootstrap.sh FOLDER [MISE_URL [SHA256]]
#
# The guest's own mise, else the one from MISE_URL, installs what FOLDER's own files ask for. Exits 3 where there
# is neither, 4 where it cannot be fetched, 5 where it is not what SHA256 says; else as mise does.
set -eu
exec 2>&1
folder=$1 url=${2:-} sum=${3:-}
: "${HOME:=/root}"
bin=$HOME/.local/bin
PATH=$HOME/.local/share/mise/shims:$bin:$PATH
export HOME PATH

fetch_mise() {
    mkdir -p "$bin"
    new=$bin/.mise.$$
    trap 'rm -f "$new"' EXIT
    trap 'exit 143' HUP INT TERM
    echo "fetching mise from $url"
    if command -v curl >/dev/null; then
        curl -fsSL --connect-timeout 30 --max-time 900 --max-filesize 268435456 -o "$new" "$url" || return 4
    elif command -v wget >/dev/null; then
        wget -q -T 60 -O "$new" "$url" || return 4
    else
        echo "neither curl nor wget is here to fetch it with"
        return 4
    fi
    if [ -n "$sum" ]; then
        is=$(sha256sum <"$new") || return 5
        if [ "${is%% *}" != "$sum" ]; then
            echo "its sha256 is ${is%% *}, and mise_sha256 says $sum"
            return 5
        fi
    fi
    chmod 755 "$new"
    mv -f "$new" "$bin/mise"
}

if ! command -v mise >/dev/null; then
    if [ -z "$url" ]; then
        echo "there is no mise here, and no mise_url in banger's configuration to fetch it from"
        exit 3
    fi
    fetch_mise || exit $?
fi

cd "$folder"
MISE_YES=1 MISE_TRUSTED_CONFIG_PATHS=$folder
export MISE_YES MISE_TRUSTED_CONFIG_PATHS
for file in .mise.toml mise.toml; do
    [ ! -f "$file" ] || mise trust "$folder/$file" # for later, in shells
done
mise install
mise reshim
echo "the tools are there"
