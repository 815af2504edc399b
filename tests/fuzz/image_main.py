"""The fuzzer of the image room's readers: atheris, which is libFuzzer for Python.

`BANGER_FUZZ=TARGET python -m tests.fuzz.image_main [libFuzzer's options] CORPUS…`. Forbids, by an audit hook,
writing outside the working directory, starting programs and connecting anywhere.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {
    *("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.chmod", "os.chown"),
    *("os.truncate", "os.utime", "os.setxattr", "os.removexattr", "os.mknod", "os.mkfifo"),
}
NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}


class Escaped(BaseException):
    """No reader catches this."""


def forbid(folder: str) -> None:
    """Of what works on a link's or a folder's entry the folder counts: the name itself may be a symlink."""

    def check(path: object, event: str) -> None:
        if isinstance(path, int):
            return
        text = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
        parent = os.path.realpath(text if event == "open" else os.path.dirname(text))
        if text.startswith("/proc/self/fd/") or text == "/dev/null":
            return
        if parent != folder and not parent.startswith(folder + "/"):
            raise Escaped(f"{event} of {text}")

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            check(arguments[0], event)
        elif event in CHANGES:
            # at a descriptor of a folder: readers have those only of what they made
            if (
                isinstance(arguments[-1], int)
                and arguments[-1] >= 0
                and event in ("os.mkdir", "os.remove", "os.rmdir")
            ):
                return
            check(arguments[1] if event == "os.symlink" else arguments[0], event)
            if event in ("os.rename", "os.link"):
                check(arguments[1], event)
        elif event in NEVER:
            raise Escaped(event)

    sys.addaudithook(hear)


def main() -> None:
    atheris: Any = importlib.import_module("atheris")
    sys.dont_write_bytecode = True
    logging.disable()
    with atheris.instrument_imports(include=["banger.image", "banger.system.tarheaders", "banger.workspace"]):
        targets = importlib.import_module("tests.fuzz.image_targets")
    forbid(os.path.realpath("."))
    atheris.Setup(sys.argv, targets.target(os.environ["BANGER_FUZZ"]))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
