"""A connection for one copy into or out of a guest (ARCHITECTURE, "Copies"), and what its end means.

Used by copyin and copyout. Closing in the middle makes the agent stop, and remove what it began.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from banger.errors import BangerError, ErrorCode
from banger.guest.connection import FrameStream, open_connection
from banger.guest.errors import GuestTimeout, GuestUnreachable
from banger.guest.wire import WireError

CONNECT_TIMEOUT_S: Final = 10.0


@contextlib.asynccontextmanager
async def copying(vm_dir: str, feature: str, *, stall_s: float) -> AsyncIterator[FrameStream]:
    """The stream, at an agent that has `feature`. stall_s: how long the body waits for a frame.

    GUEST_ERROR for an older agent; GuestTimeout for the body's TimeoutError, GuestUnreachable if it breaks.
    """
    stream, hello = await open_connection(vm_dir, timeout_s=CONNECT_TIMEOUT_S)
    try:
        if feature not in hello.features:
            raise BangerError(
                ErrorCode.GUEST_ERROR,
                "this guest's agent is older than copies",
                hint="banger vm restart gives it a new one",
            )
        yield stream
    except TimeoutError as error:
        raise GuestTimeout("go on with the copy", stall_s) from error
    except (WireError, asyncio.IncompleteReadError, OSError) as error:
        raise GuestUnreachable(
            "the connection to the guest broke before the copy ended", details=repr(error)
        ) from error
    finally:
        await stream.aclose()
