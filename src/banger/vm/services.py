"""What the lifecycle works with, put together by daemon/compose.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.disk.strategies import RootDisks
from banger.helper.interface import Helper
from banger.image.service import ImageService
from banger.model.deadlines import USUAL, Deadlines
from banger.network.host import HostNetwork
from banger.store.vms import VMTable
from banger.vm.capabilities import Capability
from banger.vm.handles import HandleCache
from banger.vm.keeping import Workspaces
from banger.vmm.protocol import Monitor


class Services(msgspec.Struct, frozen=True, kw_only=True):
    settings: Settings
    paths: Paths
    instance: str  # 16 hex digits: the mark on everything made
    boot_id: str
    table: VMTable
    cache: HandleCache
    helper: Helper
    images: ImageService
    network: HostNetwork
    disks: RootDisks
    find_monitor: Callable[[], Awaitable[Monitor]]
    """The monitor for new machines; cheap after the first call. Raises HOST_UNSUITABLE."""
    find_monitor_of: Callable[[str], Awaitable[Monitor]]
    """The monitor that a VM_DIR's running machine is of."""
    capabilities: tuple[Capability, ...]
    workspaces: Workspaces
    deadlines: Deadlines = USUAL
