#!/bin/sh
# ssh runs this (KnownHostsCommand) beside its own check against banger's known_hosts, which alone decides.
# It names no key. When a guest offers another one than banger made for it, it says on stderr what that means.
#
#   host_key_hint.sh KNOWN_HOSTS HOSTNAME|ORDER|ADDRESS HOST KEY
set -eu
[ "$2" = HOSTNAME ] && [ -r "$1" ] || exit 0
differs=
while read -r names _ key _ || [ -n "$names" ]; do
    case ",$names," in
    *",$3,"*)
        [ "$key" != "$4" ] || exit 0
        differs=yes
        ;;
    esac
done <"$1"
[ -z "$differs" ] || cat >&2 <<END
banger: the ssh host key of $3 is not the one that banger made for it, so ssh will refuse it
  changed inside the guest? \`banger vm restart ${3%.vm}\` puts banger's back; without ssh: \`banger vm shell ${3%.vm}\`
END
exit 0
