"""The work disk as a capability: /root of the guest, made once at its final size, kept over stop and start.

Owns VM_DIR/work.ext4. Made from the image's work seed, in which the public half of ssh_key_path's key as it
is now is authorised; the user's part (`[[file_sync]]`, their git identity) is laid into it as it is made, and
never again. Written to a temporary name and renamed, so that a crash leaves either no disk or a whole one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from banger.config.settings import FileSync
from banger.errors import BangerError, ErrorCode
from banger.guest.ssh import ensure_user_key, fingerprint
from banger.image.hostfiles import host_home
from banger.image.initramfs import GuestFile
from banger.image.seeds import make_work_disk
from banger.image.service import ImageService
from banger.image.workhome import UsersPart, make_users_disk
from banger.model.records import Image, VMOwner, VMRecord, VMSpec
from banger.system import ext4
from banger.vm.capabilities import Capability, Contribution
from banger.vm.subject import Subject
from banger.vmm.protocol import Drive

log = logging.getLogger(__name__)

WORK_DISK = "work.ext4"


class WorkDisk(Capability):
    name = "work_disk"

    def __init__(
        self, images: ImageService, *, ssh_key_path: str, file_sync: Sequence[FileSync] = ()
    ) -> None:
        self._images = images
        self._ssh_key_path = ssh_key_path
        self._file_sync = file_sync
        self._left_out: dict[str, tuple[str, ...]] = {}
        """By VM, as the making of its disk found it."""

    async def preflight(self, record: VMRecord) -> None:
        path = record.runtime.work_disk_path
        if os.path.lexists(path) and not os.path.isfile(path):
            raise BangerError(ErrorCode.HOST_UNSUITABLE, f"{path} is there, but is no file")

    async def prepare_host(self, subject: Subject, image: Image) -> None:
        record = subject.record
        path, wanted = record.runtime.work_disk_path, record.spec.work_disk_size_bytes
        programs = await self._images.e2fsprogs()
        if os.path.exists(path):
            if os.path.getsize(path) < wanted:  # `vm set` grew it while the VM ran
                await ext4.grow(path, size_bytes=wanted, programs=programs)
            return
        key = await ensure_user_key(self._ssh_key_path)
        files = [
            GuestFile(path=".ssh/authorized_keys", mode=0o600, content=f"{key.public_key}\n".encode()),
            GuestFile(path=".hushlogin", mode=0o644, content=b""),
        ]
        seed = await self._images.seeds.ensure(image, key=fingerprint(key.public_key), files=files)
        owner = record.spec.owner or VMOwner()
        part = UsersPart(
            host_home(owner.uid), self._file_sync, git_name=owner.git_name, git_email=owner.git_email
        )
        if part.is_empty():
            await make_work_disk(path, size_bytes=wanted, seed=seed, programs=programs)
            return
        left_out = await make_users_disk(path, size_bytes=wanted, seed=seed, part=part, programs=programs)
        for sentence in left_out:
            log.warning("%s: %s", subject.name, sentence)
        self._left_out[subject.id] = left_out

    def warnings(self, record: VMRecord) -> tuple[str, ...]:
        return self._left_out.pop(record.id, ())

    async def cleanup(self, subject: Subject) -> None:
        self._left_out.pop(subject.id, None)

    def contribute_machine(self, record: VMRecord) -> Contribution:
        return Contribution(drives=(Drive(drive_id="work", path=WORK_DISK),))

    async def apply_change(self, subject: Subject, spec: VMSpec) -> bool:
        """Growing waits for the next start: the disk belongs to the guest until then."""
        return spec.work_disk_size_bytes == subject.record.spec.work_disk_size_bytes
