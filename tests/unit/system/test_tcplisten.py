"""Who listens where, out of the kernel's tables: the lines that count, and any others."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.system import tcplisten
from banger.system.tcplisten import parse_listening

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(local: str, state: str, inode: int) -> str:
    return f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"


TABLE = HEAD + "".join(
    (
        line("0100007F:1F90", "0A", 1),  # 127.0.0.1:8080
        line("00000000:1F90", "0A", 2),  # 0.0.0.0:8080
        line("0100007F:1F90", "01", 3),  # a connection of it
        line("0200007F:1F90", "0A", 4),  # 127.0.0.2:8080
        line("0100007F:1F91", "0A", 5),  # another port
        line("00000000000000000000000001000000:1F90", "0A", 6),  # [::1]:8080
        line("00000000000000000000000000000000:1F90", "0A", 7),  # [::]:8080, IPv4 as well maybe
        "nonsense\n",
        line("xyz:1F90", "0A", 8),
        line("01:1F90", "0A", 9),
    )
)


@pytest.mark.parametrize(
    ("address", "inodes"),
    [
        ("127.0.0.1", {"1", "2", "7"}),
        ("127.0.0.2", {"2", "4", "7"}),
        ("::1", {"2", "6", "7"}),
        ("0.0.0.0", {"1", "2", "4", "6", "7"}),
    ],
)
def test_who_is_in_the_way(address: str, inodes: set[str]) -> None:
    assert parse_listening(TABLE, address, 8080) - {"9"} == inodes
    assert parse_listening(TABLE, address, 1) == set()


@given(st.text(alphabet="0123456789ABCDEF: \nx", max_size=400))
def test_anything_is_passed_over(text: str) -> None:
    parse_listening(HEAD + text, "127.0.0.1", 80)


def test_a_port_is_free_at_once_for_whoever_else_has_the_socket() -> None:
    listener = tcplisten.listen("127.0.0.78", 0)
    port = listener.getsockname()[1]
    with listener.dup() as other, contextlib.closing(socket.create_connection(("127.0.0.78", port))):
        accepted, _ = other.accept()
        accepted.close()
        tcplisten.shut(listener)
        with pytest.raises(OSError, match="Invalid"):
            other.accept()
        tcplisten.shut(tcplisten.listen("127.0.0.78", port))


def test_ipv6_is_ipv6_alone() -> None:
    # in this order: the kernel chooses a port that is free with IPv4, where others listen, too
    with tcplisten.listen("0.0.0.0", 0) as four, tcplisten.listen("::", four.getsockname()[1]):
        pass
