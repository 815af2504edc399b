"""VM, image and kernel services with memory and no host: what the daemon's and the CLI's tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from banger.api.replies import CachePruned, CatalogImage, CatalogKernel, ImageCatalog, KernelCatalog
from banger.api.requests import (
    CreateVM,
    ImportKernel,
    KillVM,
    PublishPort,
    PublishPorts,
    PullImage,
    RegisterImage,
    SetVM,
    SetWorkspace,
    UnpublishPorts,
    WhyNet,
)
from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.daemon.contracts import Services
from banger.errors import BangerError, ErrorCode
from banger.model.guestview import GuestFigures, GuestPort, PublishedState, VMPorts
from banger.model.ids import VMId, new_vm_id
from banger.model.names import generate_name, validate_name
from banger.model.netwhy import Cause, Mark, NetStage, NetWhy, Protocol
from banger.model.progress import Progress, ProgressEvent
from banger.model.records import (
    Image,
    Kernel,
    PublishedPort,
    VMHealth,
    VMRecord,
    VMRuntime,
    VMSpec,
    VMStats,
    now,
)
from banger.model.references import resolve
from banger.model.states import VMState
from banger.model.work import Work
from banger.vm.planner import Finding
from banger.vm.publishing import going_ports, spec_of, with_ports
from banger.vm.workspaces import workspace_of
from tests.fakes.workspaces import FakeWorkspaces

IMAGE_ID = "ab" * 32
LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class FakeVMs:
    """A VMService whose guests are entries in a dict. `hold` pauses boots; `fail` breaks the next one."""

    def __init__(self, vms_dir: str) -> None:
        self.vms_dir = vms_dir
        self.records: dict[str, VMRecord] = {}
        self.touched: list[str] = []
        self.brought: dict[str, dict[str, str]] = {}
        self.calls: list[str] = []
        self.hold: asyncio.Event | None = None
        self.fail: Exception | None = None
        self.boot_s = 0.0
        self.cancelled = 0
        self.findings: list[Finding] = []
        self.stubborn: set[str] = set()
        self.deaf: set[str] = set()
        self.works = FakeWorkspaces()
        self.on_running: Callable[[VMRecord], None] = lambda _record: None
        self.on_gone: Callable[[VMRecord], None] = lambda _record: None

    def list(self) -> Sequence[VMRecord]:
        return list(self.records.values())

    def resolve(self, reference: str) -> VMRecord:
        return self.records[resolve(reference, [(r.id, r.name) for r in self.records.values()])]

    async def create(self, request: CreateVM, progress: Progress) -> VMRecord:
        names = {record.name for record in self.records.values()}
        name = validate_name(request.name) if request.name else generate_name(names)
        if request.image not in ("", "debian-bookworm"):
            raise BangerError(ErrorCode.NOT_FOUND, f"no image is called {request.image!a}")
        if name in names:
            raise BangerError(
                ErrorCode.ALREADY_EXISTS, f"a VM called {name} exists", hint="choose another name"
            )
        spec = VMSpec(
            vcpu_count=request.vcpu_count or 2,
            memory_mib=request.memory_mib or 2048,
            published=_published(request.publish),
        )
        progress(ProgressEvent(step="spec", message=f"spec: {spec.vcpu_count} vcpu | {spec.memory_mib} MiB"))
        vm_id = new_vm_id()
        folder = Path(self.vms_dir) / vm_id
        folder.mkdir(parents=True)
        (folder / "console.log").write_bytes(b"booting\nlogin: \x1b[31mred\n")
        record = VMRecord(
            id=vm_id,
            name=name,
            image_id=IMAGE_ID,
            state=VMState.CREATED,
            created_at=now(),
            updated_at=now(),
            last_touched_at=now(),
            spec=spec,
            auto_remove=request.auto_remove,
            runtime=VMRuntime(
                guest_ip=f"172.16.0.{len(self.records) + 2}",
                vm_dir=str(folder),
                vsock_path=str(folder / "v.sock"),
                log_path=str(folder / "console.log"),
                dns_name=f"{name}.vm",
            ),
        )
        self.records[vm_id] = record
        progress(ProgressEvent(step="reserve", message="reserved an address", vm_id=vm_id))
        if not request.start:
            return record
        return await self.start(vm_id, progress)

    async def start(self, vm_id: str, progress: Progress) -> VMRecord:
        self.calls.append(f"start {self.records[vm_id].name}")
        self._become(vm_id, VMState.STARTING)
        progress(ProgressEvent(step="root_disk", message="preparing the root disk"))
        progress(ProgressEvent(step="root_disk", message="preparing the root disk", current=1, total=2))
        try:
            if self.hold is not None:
                await self.hold.wait()
            await asyncio.sleep(self.boot_s)
            if self.fail is not None:
                failure, self.fail = self.fail, None
                raise failure
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self.cancelled += 1
            if vm_id in self.records:
                self._become(vm_id, VMState.ERROR)
            raise
        record = self._become(vm_id, VMState.RUNNING)
        self.on_running(record)
        return record

    async def stop(self, vm_id: str, progress: Progress) -> VMRecord:
        self.calls.append(f"stop {self.records[vm_id].name}")
        progress(ProgressEvent(step="shutdown", message="asking the guest to shut down"))
        self.on_gone(self.records[vm_id])
        return self._become(vm_id, VMState.STOPPED)

    async def kill(self, vm_id: str, request: KillVM, *, progress: Progress) -> VMRecord:
        self.calls.append(f"kill {self.records[vm_id].name} {request.signal}")
        if request.signal not in ("TERM", "KILL"):
            raise BangerError(ErrorCode.INVALID_ARGUMENT, f"signal {request.signal!a} is not allowed")
        return self._become(vm_id, VMState.STOPPED)

    async def restart(self, vm_id: str, progress: Progress) -> VMRecord:
        await self.stop(vm_id, progress)
        return await self.start(vm_id, progress)

    async def delete(self, vm_id: str, progress: Progress, *, discard_work: bool = False) -> VMRecord:
        record = self.records[vm_id]
        self.calls.append(f"delete {record.name}" + (" --discard-work" if discard_work else ""))
        if record.workspace is not None and not discard_work:
            await self.keep(vm_id, progress)
            message = f"work of {record.name} is kept: banger workspace pull {record.name}"
            progress(ProgressEvent(step="work_kept", message=message))
        self.on_gone(record)
        return self.records.pop(vm_id)

    async def delete_if_not_running(
        self, vm_id: str, progress: Progress, *, discard_work: bool = False
    ) -> VMRecord:
        record = self.records[vm_id]
        if record.state is VMState.RUNNING:
            raise BangerError(ErrorCode.WRONG_STATE, f"{record.name} runs: it was left alone")
        return await self.delete(vm_id, progress, discard_work=discard_work)

    async def delete_by_itself(self, vm_id: str, progress: Progress) -> VMRecord:
        return await self.delete(vm_id, progress)

    async def stats(self, vm_id: str) -> VMStats:
        if self.records[vm_id].state is not VMState.RUNNING:
            return VMStats(collected_at=now(), work_disk_bytes=5 << 20)
        return VMStats(
            collected_at=now(),
            cpu_percent=12.5,
            rss_bytes=64 << 20,
            vsz_bytes=1 << 30,
            work_disk_bytes=5 << 20,
            metrics_raw={"net": {"rx": 1}},
        )

    async def health(self, vm_id: str) -> VMHealth:
        record = self.records[vm_id]
        alive = record.state is VMState.RUNNING
        if alive and record.name in self.deaf:
            raise BangerError(ErrorCode.TIMEOUT, "the guest's agent did not say how it is within 3 s")
        health = VMHealth(vm_id=vm_id, name=record.name, state=record.state, healthy=alive)
        return msgspec.structs.replace(health, phase="init", uptime_s=75) if alive else health

    async def figures(self, vm_id: str) -> GuestFigures | None:
        record = self.records[vm_id]
        if record.state is not VMState.RUNNING or record.name in self.deaf:
            return None
        return GuestFigures(
            uptime_s=75,
            load1=0.25,
            memory_total_kib=256 << 10,
            memory_available_kib=192 << 10,
            root_total_bytes=8 << 30,
            root_free_bytes=6 << 30,
        )

    async def net_why(self, vm_id: str, request: WhyNet) -> NetWhy:
        through = request.port != 81
        refused = "nobody listens there on TCP port 81"
        return NetWhy(
            vm_id=vm_id,
            name=self.records[vm_id].name,
            host=request.host,
            protocol=Protocol.TCP if request.port else Protocol.ICMP,
            port=request.port,
            address="198.51.100.2",
            through=through,
            cause=Cause.NONE if through else Cause.NOT_LISTENING,
            sentence=f"nothing stops it: {request.host}" if through else f"{request.host} refuses: {refused}",
            remedy="" if through else "start the \x1b[31mservice",
            stages=(
                NetStage(name="guest link", mark=Mark.OK, words="eth0 up\x1b[31m"),
                NetStage(name="answer", mark=Mark.OK if through else Mark.STOP, words="refused"),
            ),
        )

    async def ports(self, vm_id: str) -> VMPorts:
        record = self.records[vm_id]
        local = GuestPort(protocol="udp", address="127.0.0.1", port=53, uid=101)
        web = GuestPort(
            protocol="tcp",
            address="::",
            port=8080,
            uid=0,
            pid=412,
            process="ngi\x1b[31mnx",
            endpoint=f"{record.name}.vm:8080",
            url=f"http://{record.name}.vm:8080/",
        )
        return VMPorts(
            vm_id=vm_id, name=record.name, ports=(local, web), left_out=3, published=self.published(record)
        )

    async def audit(self) -> Sequence[Finding]:
        return list(self.findings)

    async def repair(self, findings: Sequence[Finding]) -> Sequence[tuple[Finding, BaseException]]:
        """Removes what has a fix; names in `stubborn` cannot be."""
        gone = [finding for finding in findings if finding.fix and finding.name not in self.stubborn]
        self.findings = [finding for finding in self.findings if finding not in gone]
        return [
            (finding, BangerError(ErrorCode.BUSY, f"{finding.name} is in use"))
            for finding in findings
            if finding.fix and finding.name in self.stubborn
        ]

    async def set(self, vm_id: str, request: SetVM, *, progress: Progress) -> VMRecord:
        record = self.records[vm_id]
        spec = msgspec.structs.replace(record.spec, vcpu_count=request.vcpu_count or record.spec.vcpu_count)
        self.records[vm_id] = msgspec.structs.replace(record, spec=spec)
        return self.records[vm_id]

    async def set_workspace(self, vm_id: str, request: SetWorkspace) -> VMRecord:
        self.brought[vm_id] = request.refs
        record = msgspec.structs.replace(self.records[vm_id], workspace=workspace_of(request, vm_id))
        self.records[vm_id] = record
        if record.workspace is not None:
            await self.works.bring(record, record.workspace, refs=request.refs)
        return record

    async def keep(self, vm_id: str, progress: Progress, *, ignored: bool = False) -> Work:
        record = self.records[vm_id]
        progress(ProgressEvent(step="keep", message=f"keeping the work in {record.name}"))
        if record.state is VMState.RUNNING:
            return await self.works.keep_live(record, ignored=ignored, progress=progress)
        return await self.works.keep_disk(record, ignored=ignored, progress=progress)

    async def publish(self, vm_id: str, request: PublishPorts) -> VMRecord:
        """A free port is always 20000."""
        record = self.records[vm_id]
        self.records[vm_id] = with_ports(record, (*record.spec.published, *_published(request.ports)))
        return self.records[vm_id]

    async def unpublish(self, vm_id: str, request: UnpublishPorts) -> VMRecord:
        record = self.records[vm_id]
        gone = going_ports(record, request)
        left = tuple(port for port in record.spec.published if spec_of(port) not in gone)
        self.records[vm_id] = with_ports(record, left)
        return self.records[vm_id]

    def published(self, record: VMRecord) -> tuple[PublishedState, ...]:
        return tuple(
            PublishedState(
                host_address=port.host_address,
                host_port=port.host_port,
                guest_port=port.guest_port,
                listening=record.state is VMState.RUNNING,
            )
            for port in record.spec.published
        )

    async def touch(self, vm_id: str) -> VMRecord:
        self.touched.append(vm_id)
        return self.records[vm_id]

    def _become(self, vm_id: str, state: VMState) -> VMRecord:
        self.records[vm_id] = msgspec.structs.replace(self.records[vm_id], state=state)
        return self.records[vm_id]

    def add(self, name: str, *, state: VMState = VMState.RUNNING, auto_remove: bool = False) -> VMId:
        """A VM that is simply there."""
        vm_id = new_vm_id()
        folder = Path(self.vms_dir) / vm_id
        folder.mkdir(parents=True)
        self.records[vm_id] = VMRecord(
            id=vm_id,
            name=name,
            image_id=IMAGE_ID,
            state=state,
            created_at=LONG_AGO,
            updated_at=LONG_AGO,
            last_touched_at=LONG_AGO,
            spec=VMSpec(),
            auto_remove=auto_remove,
            runtime=VMRuntime(
                guest_ip="172.16.0.9",
                vm_dir=str(folder),
                vsock_path=str(folder / "v.sock"),
                dns_name=f"{name}.vm",
            ),
        )
        return vm_id


def _published(ports: Sequence[PublishPort]) -> tuple[PublishedPort, ...]:
    return tuple(
        PublishedPort(
            host_address=port.host_address, host_port=port.host_port or 20_000, guest_port=port.guest_port
        )
        for port in ports
    )


class FakeImages:
    def __init__(self) -> None:
        self.pulls: list[PullImage] = []
        self.images = [
            Image(
                id=IMAGE_ID,
                name="debian-bookworm",
                created_at=LONG_AGO,
                updated_at=LONG_AGO,
                build_size=2 << 30,
                entrypoint=("echo", "runs:"),
                cmd=("its", "own"),
                user="root",
            )
        ]

    def list(self) -> Sequence[Image]:
        return self.images

    def catalog(self) -> ImageCatalog:
        def entry(name: str, *, kind: str, source: str) -> CatalogImage:
            here = any(image.name == name for image in self.images)
            return CatalogImage(name=name, kind=kind, source=source, description=f"{name} it is", here=here)

        pinned = f"example.org/team/tools@sha256:{'ab' * 32}"
        return ImageCatalog(
            images=(
                entry("debian-bookworm", kind="debian", source="bookworm"),
                entry("tools", kind="oci", source=pinned),
            )
        )

    def resolve(self, reference: str) -> Image:
        found = resolve(reference, [(image.id, image.name) for image in self.images], what="image")
        return next(image for image in self.images if image.id == found)

    async def pull(self, request: PullImage, progress: Progress) -> Image:
        self.pulls.append(request)
        progress(ProgressEvent(step="pull", message=f"pulling {request.reference}", current=5, total=10))
        image = Image(
            id=f"{len(self.pulls):064x}",
            name=request.name or "pulled",
            created_at=LONG_AGO,
            updated_at=LONG_AGO,
        )
        self.images.append(image)
        return image

    async def register(self, request: RegisterImage) -> Image:
        image = Image(
            id="e" * 64,
            name=request.name,
            created_at=LONG_AGO,
            updated_at=LONG_AGO,
            managed=False,
            rootfs_path=request.rootfs,
        )
        self.images.append(image)
        return image

    async def promote(self, reference: str, progress: Progress) -> Image:
        image = msgspec.structs.replace(self.resolve(reference), managed=True)
        progress(ProgressEvent(step="image", message="copying"))
        self.images = [image if one.id == image.id else one for one in self.images]
        return image

    async def prune_cache(self, *, dry_run: bool) -> CachePruned:
        return CachePruned(blobs=2, freed_bytes=3 << 20, in_use=0 if dry_run else 1)

    async def delete(self, reference: str) -> Image:
        image = self.resolve(reference)
        if image.id == IMAGE_ID:
            raise BangerError(ErrorCode.IN_USE, "the image is in use by 1 VM", hint="delete first: web")
        self.images.remove(image)
        return image


class FakeKernels:
    def __init__(self) -> None:
        self.kernels = {"debian-6.1": _kernel("debian-6.1")}

    def list(self) -> Sequence[Kernel]:
        return list(self.kernels.values())

    def get(self, name: str) -> Kernel:
        if name not in self.kernels:
            raise BangerError(ErrorCode.NOT_FOUND, f"no kernel {name!a} here")
        return self.kernels[name]

    def catalog(self) -> KernelCatalog:
        entry = CatalogKernel(name="debian-x", distro="debian", suite="x", here="debian-x" in self.kernels)
        return KernelCatalog(kernels=(entry,))

    async def pull(self, name: str, progress: Progress) -> Kernel:
        progress(ProgressEvent(step="kernel", message="downloading"))
        return self.kernels.setdefault(name, _kernel(name))

    async def take_in(self, request: ImportKernel, progress: Progress) -> Kernel:
        progress(ProgressEvent(step="kernel", message="importing"))
        self.kernels[request.name] = msgspec.structs.replace(_kernel(request.name), source=request.folder)
        return self.kernels[request.name]

    async def remove(self, name: str) -> Kernel:
        self.get(name)
        return self.kernels.pop(name)


def _kernel(name: str) -> Kernel:
    return Kernel(
        name=name,
        distro="debian",
        arch="x86_64",
        kernel_version="6.1.0-40-cloud-amd64",
        sha256="cd" * 32,
        source="archive",
        imported_at=LONG_AGO,
    )


class FakeWorld:
    """One instance's services. `compose` is what the daemon is started with; `closed` counts close()."""

    def __init__(self, paths: Paths) -> None:
        self.vms = FakeVMs(paths.vms_dir)
        self.images = FakeImages()
        self.kernels = FakeKernels()
        self.closed = 0

    async def compose(self, _paths: Paths, _settings: Settings) -> Services:
        return Services(
            instance="00112233aabbccdd",
            vms=self.vms,
            images=self.images,
            kernels=self.kernels,
            works=self.vms.works,
            close=self._close,
        )

    async def _close(self) -> None:
        self.closed += 1
