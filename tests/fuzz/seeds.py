"""What the fuzzer begins with: good requests, files and archives, as the host's own encoders make them.

And, in FOUND, inputs that once broke something: they are tried in each run.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable

from banger.client import copytar
from banger.guest import sessionwire, wire
from banger.guest.wire import encode_fields, encode_frame

ID = "0123456789abcdef" * 2
HEADER = wire.WIRE_HEADER_BYTES

FOUND: dict[str, list[bytes]] = {
    # a port with a sign: who is root in the guest can put a file in the place of /proc/net/tcp
    "ports": [b"\1 0: 0100007F:-001 00000000:0000 0A 0:0 0:0 0  0        0 1 1 0\n"],
    # a session's status that names another session
    "records": [bytes.fromhex("0000080001010000000002") + bytes(8)],
}


def of(target: str) -> list[bytes]:
    """Seeds of a target, and what was once found with it."""
    maker = _MAKERS.get(target, lambda: [b"seed"])
    return [*maker(), *FOUND.get(target, [])]


def piece(data: bytes) -> bytes:
    """As take_piece of agent/fuzz/fuzz.c reads it."""
    return struct.pack("<H", len(data)) + data


def _requests() -> list[bytes]:
    fields = encode_fields([(wire.COPY_PATH, "/root/new"), (wire.COPY_NAME, "d"), (wire.COPY_FLAGS, 2)])
    return [
        wire.encode_exec(["true"]),
        wire.encode_exec(
            ["sh", "-c", "x"], {"A": "b", "PATH": "/bin"}, cwd="/", user="root:root", terminal=True
        ),
        sessionwire.encode_session_list(),
        sessionwire.encode_session_stop(ID, 5000),
        encode_frame(wire.FRAME_SHUTDOWN, encode_fields([(wire.SHUTDOWN_KIND, "poweroff")])),
        encode_frame(wire.FRAME_COPY_IN, fields),
        struct.pack("<IB", wire.WIRE_MAX_PAYLOAD + 1, wire.FRAME_HEALTH),
    ]


def _exec() -> list[bytes]:
    many = {f"V{number}": "x" for number in range(40)}
    frames = [
        wire.encode_exec(["true"]),
        wire.encode_exec(
            ["cat", "-n"], {"A": "b", "HOME": "/x", "TERM": "vt100"}, cwd="/tmp", user="7:8", stdin=True
        ),
        wire.encode_exec(["x"] * 100, many, terminal=True, rows=24, cols=80),
    ]
    return [frame[HEADER:] for frame in frames]


def _small() -> list[bytes]:
    kinds = [encode_fields([(wire.SHUTDOWN_KIND, kind)]) for kind in ("poweroff", "reboot", "explode")]
    numbers = [encode_fields([(1, number)]) for number in (22, 0, 65536, 1 << 60, (1 << 64) - 1)]
    return [*kinds, *numbers, b""]


def _stream() -> list[bytes]:
    frames = [
        wire.encode_stdin(b"hello"),
        wire.encode_resize(24, 80) + wire.encode_signal(15),
        wire.encode_stdin(b"x" * 4096) * 4 + wire.encode_stdin(b""),
        encode_frame(0x2F, b"of a newer host"),
    ]
    whole = b"".join(frames)
    return [bytes([kind]) + piece(whole[:7]) + piece(whole[7:]) for kind in (0, 1, 4, 8)]


def _sessions() -> list[bytes]:
    frames = [
        sessionwire.encode_session_start(
            ID, "web", argv=["sleep", "1"], env={"A": "b"}, tags=["k=v", "word"]
        ),
        sessionwire.encode_session_start(
            ID, "t", argv=["sh"], env={}, terminal=True, stdin=True, rows=2, cols=3
        ),
        sessionwire.encode_session_attach(ID, write=True, rows=24, cols=80),
        sessionwire.encode_session_logs(ID, follow=True, tail=10),
        sessionwire.encode_session_signal(ID, 15),
        sessionwire.encode_session_stop(ID, 5000),
    ]
    return [frame[HEADER:] for frame in frames]


def _records() -> list[bytes]:
    asked = encode_fields(
        [(wire.SESSION_NAME, "web"), (wire.SESSION_CREATED, 7), (wire.SESSION_BOOT_ID, "b")]
    )
    asked += encode_fields(
        [(wire.SESSION_FLAGS, 2), (wire.SESSION_ARGUMENT, "sh"), (wire.SESSION_ENV, "A=b")]
    )
    status = encode_fields(
        [(wire.SESSION_STATUS, "exited"), (wire.SESSION_PID, 9), (wire.SESSION_EXIT_CODE, 3)]
    )
    stale = encode_fields([(wire.SESSION_STATUS, "running"), (wire.SESSION_LAST_ERROR, "old")])
    seen = encode_fields([(wire.SEEN_STDOUT_OFFSET, 4), (wire.SEEN_STDERR_OFFSET, 0)])
    long = asked + encode_fields([(wire.SESSION_TAG, "t" * 255)] * 200)
    return [
        b"".join(map(piece, files))
        for files in ((asked, status, seen, b"out"), (asked, stale), (long, status))
    ]


def _keeper() -> list[bytes]:
    def message(what: int, a: int, data: bytes = b"") -> bytes:
        return bytes([what << 1, a & 0xFF, a >> 8 & 0xFF, 0, 0]) + piece(data)

    talk = message(0, 0) + message(1, 7) + message(2, 0, b"input") + message(4, 24) + message(5, 15)
    return [bytes([kind]) + talk + message(3, 0) + message(6, 1000) + message(7, 0) for kind in (0, 1, 2, 4)]


def _view() -> list[bytes]:
    frames = [
        wire.encode_stdin(b"hello") + wire.encode_resize(24, 80) + wire.encode_signal(2),
        sessionwire.encode_session_seen(3, 0) + wire.encode_stdin(b""),
        wire.encode_stdin(b"x" * 30000) * 2,
        sessionwire.encode_session_detach(),
    ]
    return [bytes([kind]) + b"".join(map(piece, frames)) for kind in (4, 12, 5, 6, 0xFC)]


def _copy() -> list[bytes]:
    paths = (
        "/",
        "/tmp/",
        "/tmp/.",
        "relative/x",
        "~/y",
        "~",
        "/etc/passwd",
        "/etc/passwd/",
        "/no/such/..",
        "",
    )
    return [
        encode_fields([(wire.COPY_PATH, path), (wire.COPY_NAME, name), (wire.COPY_FLAGS, flags)])
        for path in paths
        for name, flags in (("n", 0), ("", 2), ("n", 12))
    ]


def archive(kind: int = tarfile.PAX_FORMAT) -> bytes:
    """Files, folders, links of both kinds, a pipe, a device, a long name; as other programs write them."""
    made = io.BytesIO()
    long = 60 if kind == tarfile.USTAR_FORMAT else 150
    with tarfile.open(fileobj=made, mode="w", format=kind) as tar:
        for name, type_, link in (
            ("./", tarfile.DIRTYPE, ""),
            ("d", tarfile.DIRTYPE, ""),
            ("d/f", tarfile.REGTYPE, ""),
            ("d/" + "n" * long, tarfile.REGTYPE, ""),
            ("d/hard", tarfile.LNKTYPE, "d/f"),
            ("d/soft", tarfile.SYMTYPE, "../outside"),
            ("d/pipe", tarfile.FIFOTYPE, ""),
            ("d/null", tarfile.CHRTYPE, ""),
            ("l/through", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.mtime = type_, link, 0o6755, 1234567890
            info.uid = info.gid = 1000
            data = b"contents" if type_ == tarfile.REGTYPE else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def own_archive() -> bytes:
    """As the client sends it, with a sparse file and a time before 1970."""
    map_ = copytar.make_map([(4096, 3), (65536, 5)])
    head = copytar.Head(b"", copytar.FOLDER, 0o755, 0, 0, 0, 5 * 10**8, b"", 0, 0)
    old = head._replace(path=b"old", kind=copytar.FILE, mode=0o644, size=4, mtime_ns=-5_500_000_000)
    holes = old._replace(path=b"holes", size=len(map_) + 8, mtime_ns=0)
    return b"".join(
        (
            copytar.make_head(head),
            copytar.make_head(old) + b"data" + copytar.padding(4),
            copytar.make_head(holes, sparse_realsize=100_000) + map_ + b"12345678" + copytar.padding(8),
            copytar.make_head(head._replace(path=b"x" * 300, kind=copytar.SYMLINK, link=b"y" * 300)),
            copytar.END,
        )
    )


def old_sparse() -> bytes:
    """GNU's older format: the map is in the header."""
    block = bytearray(512)
    block[0:6] = b"sparse"
    block[100:136] = b"0000644\0" + b"0001750\0" * 2 + b"00000000005\0"
    block[136:148] = b"00000000000\0"
    block[156:157] = b"S"
    block[257:265] = b"ustar  \0"
    block[386:410] = b"00000010000\0" + b"00000000005\0"
    block[483:495] = b"00000200000\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"12345" + bytes(507 + 1024)


def _archives() -> list[bytes]:
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [*(archive(kind) for kind in formats), own_archive(), old_sparse()]


def _tar() -> list[bytes]:
    return [bytes([kind]) + data for data in _archives() for kind in (3, 2, 170)]


def _extract() -> list[bytes]:
    plain = [bytes([kind]) + data for data in _archives() for kind in (0, 1, 2, 4, 8)]
    framed = encode_frame(wire.FRAME_COPY_DATA, own_archive()[:1000])
    framed += encode_frame(wire.FRAME_COPY_DATA, own_archive()[1000:]) + encode_frame(wire.FRAME_COPY_END)
    return [*plain, bytes([16]) + framed]


def _config() -> list[bytes]:
    lines = (
        *("hostname web", "address 172.16.0.2/24", "gateway 172.16.0.1", "mac 06:00:ac:10:00:02"),
        *("root_mode overlay", "root /dev/vda", "overlay /dev/vdb", "work /dev/vdc", "init auto", "env A=b"),
        *("# a remark", "unknown key"),
    )
    return ["\n".join(lines).encode(), b"init /sbin/init\nroot_mode direct\n"]


def _ports() -> list[bytes]:
    title = (
        b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    v4 = (
        b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12 1 0\n"
    )
    v6 = v4.replace(b"0100007F", b"0" * 24 + b"01000000").replace(
        b"00000000:0000 0A", b"0" * 32 + b":0000 07"
    )
    return [b"\1" + title + v4 + v6, b"\0" + title + v6.replace(b" 0A ", b" 07 ") * 3]


def _probe() -> list[bytes]:
    common: list[tuple[int, bytes | str | int]] = [
        (wire.PROBE_ADDRESS, "198.51.100.2"),
        (wire.PROBE_SOURCE, 61000),
        (wire.PROBE_TIMEOUT_MS, 3000),
    ]
    echo = bytes([0x45]) + bytes(19) + bytes([0, 0, 0, 0, 0, 1]) + bytes(18)
    return [
        encode_fields([(wire.PROBE_KIND, "tcp"), (wire.PROBE_PORT, 443), *common]),
        encode_fields(
            [(wire.PROBE_KIND, "udp"), (wire.PROBE_PORT, 53), (wire.PROBE_DATA, b"q" * 30), *common]
        ),
        encode_fields([(wire.PROBE_KIND, "icmp"), *common]),
        echo,
    ]


def _users() -> list[bytes]:
    passwd = b"root:x:0:0:root:/root:/bin/bash\nme:x:1000:1000::/home/me:/bin/sh\nodd:x:99:::\n"
    group = b"root:x:0:\nme:x:1000:\nwheel:x:10:root,me\n"
    return [
        piece(who) + piece(passwd) + group for who in (b"", b"me", b"1000:wheel", b"7", b"nobody:", b"me:12")
    ]


def _sshd() -> list[bytes]:
    return [
        b"HostKey /etc/ssh/ssh_host_rsa_key\nPort 22\n",
        b"Include /etc/ssh/sshd_config.d/*.conf\nHostKey /x\n",
        b'hostkey="/etc/ssh/ssh_host_ed25519_key"\n',
        b"",
    ]


_MAKERS: dict[str, Callable[[], list[bytes]]] = {
    "frames": _requests,
    "exec": _exec,
    "small": _small,
    "stream": _stream,
    "sessions": _sessions,
    "records": _records,
    "keeper": _keeper,
    "view": _view,
    "copy": _copy,
    "tar": _tar,
    "extract": _extract,
    "config": _config,
    "ports": _ports,
    "probe": _probe,
    "users": _users,
    "sshd": _sshd,
}
