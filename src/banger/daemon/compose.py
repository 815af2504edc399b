"""Putting the daemon's services together: the only place that knows every room."""

from __future__ import annotations

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.daemon.contracts import Services
from banger.errors import BangerError, ErrorCode


async def compose(paths: Paths, settings: Settings) -> Services:
    """Store, helper, network, images and VMService for these paths, opened (reconciled with the host).

    The caller holds the lock on the state folder and calls close() in the end. Raises BangerError.
    """
    del paths, settings
    raise BangerError(ErrorCode.INTERNAL, "the services are not put together yet")
