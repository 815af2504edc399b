"""Prints docs/errors.md, made from banger.api.errors. `python tools/docs/errors.py > docs/errors.md`"""

from __future__ import annotations

from banger.api.errors import MEANINGS

INTRO = """\
# Errors

<!-- Made by tools/docs/errors.py: do not edit. -->

On the terminal an error is `banger: <what failed>`, and on the next line a hint where there is one; `--debug`
shows the rest. In the API a failed request has one of these statuses and a JSON body; a failed operation
carries the same fields:

| field | what |
|---|---|
| `code` | one of the codes below; they are never renamed, and never get another meaning |
| `brief` | what failed, one line |
| `hint` | what to do, one line; absent when there is none |
| `details` | causes, tails of logs, what could not be cleaned up; absent when there are none |
| `data` | facts for programs: a reference's candidates, a file and line; absent when there are none |
| `op_id` | the operation's id: the daemon's log has it in every record |

| code | HTTP | meaning | what to do |
|---|---|---|---|
"""


def document() -> str:
    rows = [
        f"| `{code.value}` | {info.status} | {info.meaning} | {info.advice} |\n"
        for code, info in MEANINGS.items()
    ]
    return INTRO + "".join(rows)


if __name__ == "__main__":
    print(document(), end="")
