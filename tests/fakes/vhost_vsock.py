"""A vsock bridge without a bridge: as much of vhost-device-vsock as QEMU needs to start. A program.

Speaks vhost-user on --socket until QEMU hangs up, with the real one's options and exit; binds --uds-path
and serves nothing there. The standard library only.
"""

from __future__ import annotations

import argparse
import socket
import struct

GET_FEATURES, GET_VRING_BASE, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_CONFIG = 1, 11, 15, 17, 24
VERSION_1, PROTOCOL_FEATURES, CONFIG = 1 << 32, 1 << 30, 1 << 9


def serve(connection: socket.socket, cid: int) -> None:
    with connection.makefile("rb") as stream:
        while len(head := stream.read(12)) == 12:
            request, flags, size = struct.unpack("<III", head)
            payload = stream.read(size)
            if request == GET_FEATURES:
                reply = struct.pack("<Q", VERSION_1 | PROTOCOL_FEATURES)
            elif request == GET_PROTOCOL_FEATURES:
                reply = struct.pack("<Q", CONFIG)
            elif request == GET_QUEUE_NUM:
                reply = struct.pack("<Q", 2)
            elif request == GET_CONFIG:
                reply = payload[:12] + struct.pack("<Q", cid)[: len(payload) - 12]
            elif request == GET_VRING_BASE:
                reply = payload
            else:
                continue
            connection.sendall(struct.pack("<III", request, (flags & 3) | 4, len(reply)) + reply)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--guest-cid", type=int, required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--uds-path", required=True)
    options = parser.parse_args()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as guests:
        guests.bind(options.uds_path)
        guests.listen()
        listener.bind(options.socket)
        listener.listen(1)
        while True:
            connection, _ = listener.accept()
            with connection:
                serve(connection, options.guest_cid)


if __name__ == "__main__":
    main()
