"""banger: a real Linux machine (a microVM) in one command, on your own Linux host.

`from banger import Client` is the Python SDK (docs/python.md). Its names are imported when they are asked
for: the command line pays for none of them.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from banger.client.aio import AsyncClient
    from banger.client.aioprocess import AsyncProcess, AsyncSessionStream, AsyncStream
    from banger.client.aiosession import AsyncSession
    from banger.client.aiovm import AsyncVM
    from banger.client.copy import Copied
    from banger.client.guest import CommandNotStarted
    from banger.client.process import Process, SessionStream, Stream
    from banger.client.sdk import Client
    from banger.client.session import Session
    from banger.client.values import (
        CommandFailed,
        CommandTimeout,
        Output,
        OutputTooLong,
        Progress,
        Result,
    )
    from banger.client.vm import VM
    from banger.errors import BangerError, ErrorCode
    from banger.local.programs import prepare_workspace, pull_work, user_credentials

__all__ = [
    "VM",
    "AsyncClient",
    "AsyncProcess",
    "AsyncSession",
    "AsyncSessionStream",
    "AsyncStream",
    "AsyncVM",
    "BangerError",
    "Client",
    "CommandFailed",
    "CommandNotStarted",
    "CommandTimeout",
    "Copied",
    "ErrorCode",
    "Output",
    "OutputTooLong",
    "Process",
    "Progress",
    "Result",
    "Session",
    "SessionStream",
    "Stream",
    "prepare_workspace",
    "pull_work",
    "user_credentials",
]

_MODULES = {
    "VM": "client.vm",
    "AsyncClient": "client.aio",
    "AsyncProcess": "client.aioprocess",
    "AsyncSession": "client.aiosession",
    "AsyncSessionStream": "client.aioprocess",
    "AsyncStream": "client.aioprocess",
    "AsyncVM": "client.aiovm",
    "BangerError": "errors",
    "Client": "client.sdk",
    "CommandFailed": "client.values",
    "CommandNotStarted": "client.guest",
    "CommandTimeout": "client.values",
    "Copied": "client.copy",
    "ErrorCode": "errors",
    "Output": "client.values",
    "OutputTooLong": "client.values",
    "Process": "client.process",
    "Progress": "client.values",
    "Result": "client.values",
    "Session": "client.session",
    "SessionStream": "client.process",
    "Stream": "client.process",
    "prepare_workspace": "local.programs",
    "pull_work": "local.programs",
    "user_credentials": "local.programs",
}


if not TYPE_CHECKING:  # else any name at all would do for type checkers

    def __getattr__(name: str) -> object:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(f"{__name__}.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
