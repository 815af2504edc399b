"""The Debian recipe: mmdebstrap's tar stream, and what banger changes in it.

mmdebstrap runs in namespaces of its own, as root or as a plain user; it checks Debian's signatures with the
same keyring, from the same mirror, as the archive client. No hook and no chroot of banger's: changes
are entries of the tar, made while it streams by (rootfs.py). What a killed mmdebstrap leaves is in the
folder that the caller gives it, which the next try removes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from banger.errors import BangerError
from banger.image import catalog, rootfs, sources
from banger.image.archive import find_keyring
from banger.image.rootfs import Rewritten, TreeFile
from banger.image.staging import remove_tree
from banger.model.progress import Progress, ProgressEvent
from banger.system.run import run, run_to_fd

TIMEOUT_S = 3600.0
_AS_NAMESPACE_ROOT = ("--user", "--map-root-user", "--map-auto")
"""unshare's options (util-linux ≥ 2.38); newuidmap and /etc/subuid are needed, as for any rootless build."""
_STEP = "rootfs"

MASKED = (
    # no terminal to log in at: the agent gives one
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "getty-static.service",
    # work that a disposable machine does not need at each boot
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-pstore.service",
    "systemd-firstboot.service",
    # the agent has set the address before init starts
    "systemd-networkd-wait-online.service",
)

_SSHD = b"""\
# banger: root logs in with a key only; the host key is laid in at each start
PermitRootLogin prohibit-password
PasswordAuthentication no
HostKey /etc/ssh/ssh_host_ed25519_key
UseDNS no
"""

_SSH_UNIT = b"""\
# a host key where nobody gave one, so that sshd starts in any case
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -s /etc/ssh/ssh_host_ed25519_key || exec ssh-keygen -q -t ed25519 -N "" \
-f /etc/ssh/ssh_host_ed25519_key'
"""


def changes() -> list[TreeFile]:
    """What is added to, or replaced in, every Debian image."""
    return [
        TreeFile("etc/machine-id"),  # empty: systemd makes one at boot, each machine its own
        TreeFile("etc/fstab", b"# disks are mounted by banger's agent before init starts\n"),
        TreeFile("etc/hostname", b"banger\n"),
        TreeFile("etc/resolv.conf"),
        TreeFile("etc/ssh/sshd_config.d/10-banger.conf", _SSHD),
        TreeFile("etc/systemd/system/ssh.service.d/10-banger.conf", _SSH_UNIT),
        TreeFile("etc/systemd/system/default.target", target="/usr/lib/systemd/system/multi-user.target"),
        *(TreeFile(f"etc/systemd/system/{unit}", target="/dev/null") for unit in MASKED),
    ]


def is_dropped(path: str) -> bool:
    """What must not be in an image: host keys, the build's own settings and leftovers."""
    return (
        (path.startswith("etc/ssh/ssh_host_") and path.count("/") == 2)
        or path == "etc/apt/apt.conf.d/99mmdebstrap"
        or path == "var/lib/dbus/machine-id"
        or path.startswith(("var/cache/apt/", "var/lib/apt/lists/", "var/log/apt/"))
        or path in ("var/log/dpkg.log", "var/log/bootstrap.log", "var/log/alternatives.log")
    )


def find_security_mirror(suite: str, *, root: Path = Path("/")) -> str:
    """The host apt's mirror of `<suite>-security`; "" where it has none. Blocking."""
    for uri, suites, _ in sources.read_sources(root / "etc/apt"):
        if f"{suite}-security" in suites and urlsplit(uri).scheme in ("http", "https"):
            return sources.normalise_mirror(uri)
    return ""


def command(
    image: catalog.DebianImage,
    *,
    mirror: str,
    security: str,
    architecture: str,
    proxies: sources.Proxies,
    keyring: Path,
) -> list[str]:
    """The argv: the tar goes to stdout.

    mmdebstrap mounts /proc, /sys and a /dev in its tree, and would leave mounts and processes behind when
    killed. So it gets namespaces of its own (for a plain user also one of user ids: their own is its
    root, their subordinate ids are the others), which end with it; and it ends with the daemon.
    """
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare"]
    argv += [] if os.geteuid() == 0 else [*_AS_NAMESPACE_ROOT, "--setuid", "0", "--setgid", "0"]
    argv += [
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child=KILL",
        "mmdebstrap",
        "--mode=root",
        "--skip=chroot/mount/sys",  # which a plain user may not mount; nothing in the recipe needs it
        "--variant=minbase",
        "--format=tar",
        f"--architectures={architecture}",
        "--components=main",
        f"--keyring={keyring}",
        f"--include={','.join(image.packages)}",
        "--dpkgopt=force-unsafe-io",  # what is built here is thrown away if the host crashes
    ]
    for scheme, proxy in sorted(proxies.by_scheme.items()):
        argv.append(f'--aptopt=Acquire::{scheme}::Proxy "{proxy}"')
    argv += [image.suite, "-", f"deb {mirror} {image.suite} main", f"deb {mirror} {image.suite}-updates main"]
    if security:
        argv.append(f"deb {security} {image.suite}-security main")
    return argv


async def build_tree(
    image: catalog.DebianImage,
    *,
    mirror: str,
    architecture: str,
    work: Path,
    root_tar: Path,
    seed_tar: Path,
    lock: int,
    progress: Progress,
) -> Rewritten:
    """Run the recipe. work: an empty folder for mmdebstrap's tree.

    lock: the descriptor of the lock under which this runs. mmdebstrap inherits it: should it outlive a
    killed daemon for a moment, the next builder waits for its end and not just for the daemon's.
    """
    base = sources.normalise_mirror(mirror) if mirror else await asyncio.to_thread(sources.find_mirror, "")
    argv = command(
        image,
        mirror=base,
        security=await asyncio.to_thread(find_security_mirror, image.suite),
        architecture=architecture,
        proxies=await sources.apt_proxies(),
        keyring=find_keyring(),
    )
    env = {"TMPDIR": str(work), "HOME": str(work)}
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        value = os.environ.get(name) or os.environ.get(name.upper())
        if value:
            env[name] = value
    loop = asyncio.get_running_loop()

    def written(count: int) -> None:
        event = ProgressEvent(step=_STEP, message="taking over the files of the image", current=count)
        loop.call_soon_threadsafe(progress, event)

    def heard(line: str) -> None:
        if line.startswith("I: "):
            progress(ProgressEvent(step=_STEP, message=f"building {image.name}: {line[3:].strip()}"))

    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    rewriting = asyncio.create_task(
        asyncio.to_thread(_rewrite, read_end, root_tar=root_tar, seed_tar=seed_tar, written=written)
    )
    broken_off = False
    try:
        try:
            await run_to_fd(argv, write_end, timeout_s=TIMEOUT_S, env=env, on_line=heard, pass_fds=(lock,))
        finally:
            # a reader that has ended by now did so because of what it read, and mmdebstrap died of that
            broken_off = rewriting.done()
            os.close(write_end)
    except BaseException:
        problem = (await asyncio.gather(rewriting, return_exceptions=True))[0]
        if broken_off and isinstance(problem, BangerError):
            raise problem from None
        raise
    return await rewriting


def _rewrite(
    read_end: int,
    *,
    root_tar: Path,
    seed_tar: Path,
    written: Callable[[int], None],
) -> Rewritten:
    with os.fdopen(read_end, "rb", buffering=1 << 20) as stream:
        result = rootfs.rewrite(
            stream,
            root_tar,
            seed_tar,
            add=changes(),
            drop=is_dropped,
            written=written,
        )
        while stream.read(1 << 20):
            pass  # what follows the archive's end (padding), so that mmdebstrap does not die of a closed pipe
        return result


async def remove_work(work: Path) -> None:
    """Remove mmdebstrap's folder. A plain user's has files of their subordinate ids."""
    if not await asyncio.to_thread(os.path.lexists, work):
        return
    if os.geteuid() != 0:
        argv = ["unshare", *_AS_NAMESPACE_ROOT, "rm", "-rf", "--one-file-system", "--", str(work)]
        await run(argv, timeout_s=300, check=False)
    await asyncio.to_thread(remove_tree, work)
