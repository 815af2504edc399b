"""What a guest is told before its init starts: host name, hosts, resolver, ssh host key, address.

Pure but for reading the keys it is given. The result goes into the per-VM archive behind the initramfs
(image/initramfs.py), never onto the kernel command line.
"""

from __future__ import annotations

from banger.config.settings import Settings
from banger.guest.ssh import KeyPair
from banger.image.initramfs import GuestConfig, GuestFile, fit_env, image_workdir
from banger.model.records import Image, VMRecord
from banger.network.addresses import mac_of


def guest_config(
    record: VMRecord,
    image: Image,
    *,
    settings: Settings,
    root_mode: str,
    init: str,
    work_device: str,
    overlay_device: str,
    modules_device: str = "",
) -> GuestConfig:
    """/banger/config. Devices are names such as /dev/vdb, "" for none."""
    return GuestConfig(
        hostname=record.name,
        address=f"{record.runtime.guest_ip}/{settings.cidr}",
        gateway=settings.bridge_ip,
        mac=mac_of(record.runtime.guest_ip),
        root_mode=root_mode,
        root="/dev/vda",
        overlay=overlay_device,
        work=work_device,
        modules=modules_device,
        init=init or "auto",
        workdir=image_workdir(image),
        env=fit_env(image.env)[0],
    )


def guest_files(record: VMRecord, *, settings: Settings, host_key: KeyPair) -> list[GuestFile]:
    """The files laid over the guest's root at each start."""
    name = record.name
    domain = f"{name}.vm"
    with open(host_key.private_path, "rb") as file:
        private = file.read()
    return [
        GuestFile(path="etc/hostname", mode=0o644, content=f"{name}\n".encode()),
        GuestFile(
            path="etc/hosts",
            mode=0o644,
            content=(
                f"127.0.0.1\tlocalhost\n127.0.1.1\t{domain} {name}\n{record.runtime.guest_ip}\t{domain}\n"
                "::1\tlocalhost ip6-localhost ip6-loopback\n"
            ).encode(),
        ),
        GuestFile(
            path="etc/resolv.conf",
            mode=0o644,
            content=f"nameserver {settings.bridge_ip}\nsearch vm\n".encode(),
        ),
        GuestFile(path="etc/ssh/ssh_host_ed25519_key", mode=0o600, content=private),
        GuestFile(
            path="etc/ssh/ssh_host_ed25519_key.pub", mode=0o644, content=f"{host_key.public_key}\n".encode()
        ),
        # beside whatever host keys the image lists: the one that is checked is always offered
        GuestFile(
            path="etc/ssh/sshd_config.d/00-banger.conf",
            mode=0o644,
            content=b"HostKey /etc/ssh/ssh_host_ed25519_key\n",
        ),
    ]
