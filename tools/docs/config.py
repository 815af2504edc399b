"""Prints docs/config.md, made from banger.config.keys. `python tools/docs/config.py > docs/config.md`"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from banger.config.keys import TABLES, TOP, Key

INTRO = """\
# Configuration

<!-- Made by tools/docs/config.py: do not edit. -->

TOML, in `~/.config/banger/config.toml`; for root `/etc/banger/config.toml`; with `BANGER_HOME=DIR` in
`DIR/config.toml`. The daemon reads it when it starts: after a change, `banger daemon stop`, and the next
command starts it anew. VMs run on.

Every key may be left out. An unknown key, a wrong type or a value out of range is an error that names the
file, the line and what would be right; nothing starts half-configured. Durations are written as Go does:
`10s`, `1.5s`, `2h30m`, `24h`, `0`. Sizes are a whole number and `K`, `M` or `G` (`512M`, `8G`); without a
letter it is MiB. Paths are absolute or begin with `~/`.
"""

VARIABLES = {
    "`BANGER_HOME`": "One folder for configuration, state, cache and sockets: an instance of its own. "
    "Give it its own `bridge_name`, `bridge_ip` and `dns_listen` too.",
    "`BANGER_LOG_LEVEL`": "Wins over `log_level`.",
    "`HOME`, `XDG_CONFIG_HOME`, `XDG_STATE_HOME`, `XDG_CACHE_HOME`, `XDG_RUNTIME_DIR`": "Where things are, "
    "for users other than root. Relative ones are ignored.",
}


def table(keys: Iterable[Key]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        name = f"`{key.name}`" + (" (required)" if key.required else "")
        yield f"| {name} | {key.kind} | {'' if key.required else key.default} | {key.doc} |"


def document() -> str:
    lines = [INTRO, *table(TOP)]
    for part in TABLES:
        header = f"[[{part.name}]]" if part.many else f"[{part.name}]"
        many = " May be given many times." if part.many else ""
        lines += ["", f"## `{header}`", "", part.doc + many, "", *table(part.keys)]
    lines += ["", "## Environment", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in VARIABLES.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(document(), end="")
