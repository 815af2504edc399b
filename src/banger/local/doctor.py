"""`banger doctor`: everything a host needs, checked one by one, with what to do about each.

Owns the order of the checks and asking the system for the facts; findings.py turns facts into words.
The CLI imports this on demand and renders it. Needs no daemon, changes nothing, leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
import platform
import pwd
import stat
from pathlib import Path

import banger
from banger.client.client import Client
from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.config.toml import load_settings
from banger.errors import BangerError, ErrorCode
from banger.image.kernel import read_kernel
from banger.image.published import WORK_SEED, read_image
from banger.image.seeds import read_stamp
from banger.local import findings, netchecks
from banger.local.findings import Check, Distribution, Status
from banger.model.defaults import HostCapacity, resolve_spec
from banger.system.host_packages import HOST_PACKAGES, RUN, HostPackage, absent
from banger.system.kvm import kvm_status
from banger.system.run import run
from banger.vmm.firecracker.driver import find_firecracker
from banger.vmm.select import choose_monitor

VERSION_TIMEOUT_S = 10.0


def checks(paths: Paths | None = None) -> list[Check]:
    """Every check, in the order in which a person should read them. Takes about a second."""
    return asyncio.run(gather(paths or resolve_paths()))


def worst(found: list[Check]) -> Status:
    return max((check.status for check in found), key=list(Status).index, default=Status.PASS)


def to_json(check: Check) -> dict[str, str]:
    """As `doctor --json` shows it: an empty hint is left out."""
    shown = {"name": check.name, "status": str(check.status), "message": check.message}
    return shown | ({"hint": check.hint} if check.hint else {})


async def gather(paths: Paths) -> list[Check]:
    distribution = read_distribution()
    settings, configuration = read_settings(paths)
    root = os.geteuid() == 0
    found = [
        Check("banger", Status.PASS, f"banger {banger.__version__}, Python {platform.python_version()}"),
        configuration,
        defaults_check(settings),
        findings.privileges(root=root),
    ]
    packages = await asyncio.gather(
        *(package_check(row, distribution) for row in HOST_PACKAGES if wanted(row))
    )
    found += packages
    if not root:
        found.append(findings.subordinate_ids(has_subordinate_ids()))
    kvm = await kvm_status()
    found.append(findings.kvm(kvm, virtual_machine=in_virtual_machine()))
    found += await monitor_checks(settings, kvm_usable=kvm.usable)
    found += [
        findings.device("tun", "/dev/net/tun", opens("/dev/net/tun"), module="tun"),
        findings.device_mapper(
            there=Path("/dev/mapper/control").exists(), asked_for=settings.root_disk == "dm-snapshot"
        ),
        findings.folder("state folder", paths.state_dir, free_below(paths.state_dir)),
        findings.folder("socket folder", paths.runtime_dir, free_below(paths.runtime_dir), large=False),
        await asyncio.to_thread(kernel_check, paths),
        await asyncio.to_thread(image_check, paths, settings.default_image_name),
        key_check(settings.ssh_key_path or f"{paths.ssh_dir}/id_ed25519"),
        await asyncio.to_thread(daemon_check, paths),
    ]
    return found + await netchecks.network_checks(paths, settings, root=root, distribution=distribution)


def read_distribution() -> Distribution:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return Distribution("", "this distribution")
    return Distribution.of(release)


def read_settings(paths: Paths) -> tuple[Settings, Check]:
    """The settings, or the built-in ones beside a FAIL that says what is wrong with the file."""
    try:
        settings = load_settings(paths.config_file)
    except BangerError as error:
        return Settings(), Check("configuration", Status.FAIL, error.brief, error.hint or "")
    there = Path(paths.config_file).exists()
    said = paths.config_file if there else f"built-in settings: there is no {paths.config_file}"
    return settings, Check("configuration", Status.PASS, said)


def wanted(row: HostPackage) -> bool:
    """What only this project's tests need is of no concern to a user, but in a clone it is checked too."""
    return row.use == RUN or (Path(banger.__file__).parents[2] / "tests" / "conftest.py").exists()


async def package_check(row: HostPackage, distribution: Distribution) -> Check:
    lacking = await asyncio.to_thread(absent, row)
    version = ""
    if not lacking and row.version_argv:
        try:
            done = await run(row.version_argv, timeout_s=VERSION_TIMEOUT_S, output_limit=8192)
        except (BangerError, OSError) as error:
            return findings.broken_package(row, str(error), distribution)
        version = findings.find_version((done.stdout + b"\n" + done.stderr).decode("utf-8", "replace"))
    return findings.package(row, lacking, version=version, distribution=distribution)


async def monitor_checks(settings: Settings, *, kvm_usable: bool) -> list[Check]:
    """Which monitor the next VM would get (the product's own choice), and about Firecracker."""

    async def no_bridge() -> str:
        raise AssertionError("doctor launches nothing")

    try:
        chosen = (await choose_monitor(settings, no_bridge)).info
        version = ".".join(map(str, chosen.version))
        first = Check(
            "monitor",
            Status.PASS,
            f"{chosen.kind} {version} at {chosen.path}" + (f": {chosen.note}" if chosen.note else ""),
        )
    except BangerError as error:
        first = Check("monitor", Status.FAIL, error.brief, error.hint or "")
    try:
        firecracker = await find_firecracker(settings.firecracker_bin, kvm_usable=kvm_usable)
    except BangerError as error:
        return [first, Check("firecracker", Status.WARN, error.brief, error.hint or "")]
    path = firecracker.info.path if firecracker else ""
    shown = ".".join(map(str, firecracker.info.version)) if firecracker else ""
    return [first, findings.firecracker(path, shown, kvm_usable=kvm_usable)]


def kernel_check(paths: Paths) -> Check:
    try:
        names = [folder.name for folder in subfolders(paths.kernels_dir) if read_kernel(folder)]
    except BangerError as error:
        return Check("kernel", Status.FAIL, error.brief, error.hint or "")
    return findings.made_at_first_use("kernel", names, "it comes from Debian's archive at the first start")


def image_check(paths: Paths, default: str) -> Check:
    try:
        folders = subfolders(paths.images_dir)
        images = [image for folder in folders if (image := read_image(folder))]
    except BangerError as error:
        return Check("image", Status.FAIL, error.brief, error.hint or "")
    broken = [
        f"{image.name}: {path} is missing"
        for image in images
        for path in (image.rootfs_path, image.kernel_path)
        if image.managed and path and not Path(path).exists()
    ]
    if broken:
        hint = "banger image delete NAME, and pull it again"
        return Check("image", Status.FAIL, f"images that do not start: {'; '.join(broken)}", hint)
    unseeded = [said for folder in folders if (said := without_seed(folder))]
    if unseeded:
        hint = "pull or register the image again where guests shall find its /root"
        return Check("image", Status.WARN, f"/root starts out empty: {'; '.join(unseeded)}", hint)
    return findings.images([image.name for image in images], default)


def without_seed(folder: Path) -> str:
    """Which image of this folder has no work seed, and why; "" where all is well."""
    image = read_image(folder)
    name = image.name if image else folder.name[:12]  # of the user's own files
    seed = Path(image.work_seed_path) if image and image.work_seed_path else folder / WORK_SEED
    stamp = read_stamp(seed)
    if stamp is not None:
        return f"the image {name} has no work seed: {stamp.problem}" if stamp.problem else ""
    # a registered image without one is given it by its next VM
    return f"the image {name} has no work seed" if image and not seed.exists() else ""


def subfolders(folder: str) -> list[Path]:
    """Of a folder that may not be there; hidden ones (staging, locks) left out."""
    try:
        return sorted(path for path in Path(folder).iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError:
        return []


def defaults_check(settings: Settings) -> Check:
    """What a VM gets for which nothing is asked, as the daemon resolves it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        resolved = resolve_spec(
            settings.vm_defaults, HostCapacity(cpus=os.cpu_count() or 0, memory_bytes=memory)
        )
    except BangerError as error:
        return Check("defaults", Status.FAIL, error.brief, error.hint or "mend [vm_defaults] in config.toml")
    return findings.defaults(resolved)


def daemon_check(paths: Paths) -> Check:
    """Started by nobody: doctor looks."""
    try:
        with Client(paths, autostart=False, version="") as client:
            info = client.info()
    except BangerError as error:
        if error.code is ErrorCode.DAEMON_UNREACHABLE:
            return Check("daemon", Status.PASS, "does not run: every command starts it when needed")
        return Check("daemon", Status.WARN, error.brief, error.hint or f"read {paths.daemon_log}")
    return findings.daemon(info["version"], info["pid"], info.get("warnings", ()))


def key_check(path: str) -> Check:
    """Of the private key that guests let in."""
    try:
        found = os.stat(path)
    except OSError:
        return findings.made_at_first_use("ssh key", [], f"made at the first start, {path}")
    if not stat.S_ISREG(found.st_mode):
        hint = "set ssh_key_path in config.toml to a private key, or to a path where none is yet"
        return Check("ssh key", Status.FAIL, f"{path} is no file", hint)
    return findings.ssh_key(path, mode=stat.S_IMODE(found.st_mode))


def opens(path: str) -> str:
    """ "" when a device opens for reading and writing, else why not."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def free_below(folder: str) -> int | None:
    """Free bytes where a folder is or would be made; None where this user may not write there."""
    place = Path(folder)
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return None
    figures = os.statvfs(place)
    return figures.f_bavail * figures.f_frsize


def has_subordinate_ids() -> bool:
    """Whether this user has ranges in both /etc/subuid and /etc/subgid."""
    owners = {pwd.getpwuid(os.getuid()).pw_name, str(os.getuid())}
    try:
        tables = [Path(table).read_text().splitlines() for table in ("/etc/subuid", "/etc/subgid")]
    except OSError:
        return False
    return all(any(line.split(":")[0] in owners for line in table) for table in tables)


def in_virtual_machine() -> bool:
    """Whether the processor says that a hypervisor is below this kernel (x86: the `hypervisor` flag)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return "hypervisor" in flags.split()
