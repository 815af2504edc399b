"""config.toml: every key, every refusal with its line, and no input at all that gives a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from banger.config.keys import TABLES, TOP
from banger.config.settings import CatalogImage, FileSync, Registry, Settings, Tooling, VMDefaults
from banger.config.toml import MAX_BYTES, load_settings, parse_settings
from banger.errors import BangerError, ErrorCode

FILE = "/etc/banger/config.toml"


def parse(text: str, *, home: str = "/home/ann") -> Settings:
    return parse_settings(text.encode(), FILE, home=home)


def refused(text: str, *, home: str = "/home/ann") -> BangerError:
    with pytest.raises(BangerError) as caught:
        parse(text, home=home)
    assert caught.value.code is ErrorCode.INVALID_CONFIG
    return caught.value


DIGEST = f"sha256:{'01' * 32}"
EVERYTHING = """
log_level = "debug"
vmm = "qemu"
firecracker_bin = "~/bin/firecracker"
qemu_bin = "/opt/qemu"
jailer_enabled = false
ssh_key_path = "/home/ann/.ssh//banger"
default_image_name = "mine"
auto_stop_stale_after = "2h30m"
stats_poll_interval = "1.5s"
metrics_poll_interval = "1m"
bridge_name = "br-mine"
bridge_ip = "10.1.2.1"
cidr = 20
tap_pool_size = 0
default_dns = "9.9.9.9"
dns_listen = "127.0.0.2:5353"
root_disk = "reflink"
network_isolation = false
host_access = [8080, 22, 8080]
debian_mirror = "http://mirror.example.org/debian/"

[vm_defaults]
vcpu = 3
memory_mib = 1000
disk_size = "4G"
system_overlay_size = 512
nat = true

[tooling]
mise_url = "https://mise.example.org/v1/mise-linux-{arch}"
mise_sha256 = "SUM"

[[registry]]
host = "Registry.example.org:5000"
insecure = true
[[registry]]
host = "other.example.org"
mirror = "https://mirror.example.org/"

[[catalog]]
name = "tools"
reference = "registry.example.org:5000/team/tools:v1@DIGEST"
description = "What the team works with"
[[catalog]]
name = "debian-bookworm"
reference = "debian@DIGEST"

[[file_sync]]
host = "~/.gitconfig"
guest = "~/.gitconfig"
mode = "0644"
[[file_sync]]
host = "/etc/hosts"
guest = "/root/./hosts"
""".replace("DIGEST", DIGEST).replace("SUM", "AB" * 32)


def test_every_key_is_read() -> None:
    assert parse(EVERYTHING) == Settings(
        log_level="debug",
        vmm="qemu",
        firecracker_bin="/home/ann/bin/firecracker",
        qemu_bin="/opt/qemu",
        ssh_key_path="/home/ann/.ssh/banger",
        default_image_name="mine",
        auto_stop_stale_after_s=9000.0,
        stats_poll_interval_s=1.5,
        metrics_poll_interval_s=60.0,
        bridge_name="br-mine",
        bridge_ip="10.1.2.1",
        cidr=20,
        tap_pool_size=0,
        default_dns="9.9.9.9",
        dns_listen="127.0.0.2:5353",
        root_disk="reflink",
        network_isolation=False,
        host_access=(8080, 22),
        debian_mirror="http://mirror.example.org/debian",
        vm_defaults=VMDefaults(
            vcpu=3, memory_mib=1000, disk_size=4 << 30, system_overlay_size=512 << 20, nat=True
        ),
        tooling=Tooling(mise_url="https://mise.example.org/v1/mise-linux-{arch}", mise_sha256="ab" * 32),
        registries=(
            Registry(host="registry.example.org:5000", insecure=True),
            Registry(host="other.example.org", mirror="https://mirror.example.org"),
        ),
        catalog=(
            CatalogImage(
                name="tools",
                reference=f"registry.example.org:5000/team/tools:v1@{DIGEST}",
                description="What the team works with",
            ),
            CatalogImage(name="debian-bookworm", reference=f"debian@{DIGEST}"),
        ),
        file_sync=(
            FileSync(host="~/.gitconfig", guest="~/.gitconfig", mode=0o644),
            FileSync(host="/etc/hosts", guest="~/hosts"),
        ),
    )


def test_the_keys_are_the_fields_of_the_settings() -> None:
    tables = {table.field: table for table in TABLES}
    assert {key.field for key in TOP} | set(tables) == {f.name for f in msgspec.structs.fields(Settings)}
    for field, record in (
        ("vm_defaults", VMDefaults),
        ("tooling", Tooling),
        ("registries", Registry),
        ("catalog", CatalogImage),
        ("file_sync", FileSync),
    ):
        assert {key.field for key in tables[field].keys} == {f.name for f in msgspec.structs.fields(record)}


def test_an_empty_file_is_the_defaults_and_they_pass_their_own_checks() -> None:
    assert parse("") == parse("# nothing\n") == Settings()
    shown = {"from PATH", "none", "in the state folder", "[]", "the host's apt's"}
    for key in TOP:
        if key.default in shown or key.name.startswith("jailer"):
            continue
        value: object = key.default
        if key.default in ("true", "false"):
            value = key.default == "true"
        elif key.name in ("cidr", "tap_pool_size"):
            value = int(key.default)
        assert key.check(value, "") == getattr(Settings(), key.field), key.name


def test_an_unknown_key_is_shown_with_its_line_and_the_near_miss_first() -> None:
    error = refused('vmm = "auto"\n\nbridge_nam = "x"\n')
    assert error.brief == f"{FILE}:3: unknown key 'bridge_nam'"
    assert error.hint is not None
    assert error.hint.startswith(
        "did you mean bridge_name or bridge_ip? valid keys: bridge_name, bridge_ip, "
    )
    assert "file_sync" in error.hint
    assert error.data == {"file": FILE, "line": 3, "key": "bridge_nam"}


def test_an_unknown_key_in_a_table() -> None:
    error = refused("[vm_defaults]\nvcpu = 1\nmemory = 5\n")
    assert error.brief == f"{FILE}:3: [vm_defaults] unknown key 'memory'"
    assert error.hint == (
        "did you mean memory_mib? valid keys: memory_mib, vcpu, disk_size, system_overlay_size, nat"
    )


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        # wrong types
        ("vmm = 1", 1, "vmm: must be a text in quotes, not a whole number"),
        ('cidr = "24"', 1, "cidr: must be a whole number, not a text"),
        ("cidr = true", 1, "cidr: must be a whole number, not true or false"),
        ("cidr = 24.0", 1, "not a number"),
        ("network_isolation = 1", 1, "must be true or false, not a whole number"),
        ("vm_defaults = 1", 1, "vm_defaults must be a table"),
        ("[[vm_defaults]]\nvcpu = 1", 1, "vm_defaults must be a table, not a list"),
        ("[registry]\nhost = 'x'", 1, "registry must be a list of tables"),
        ("file_sync = [1]", 1, "file_sync must be a list of tables"),
        ("bridge_ip = 1979-05-27", 1, "not a date"),
        ("[vmm]\na = 1", 1, "vmm: must be a text in quotes, not a table"),
        # ranges and formats
        ("\ncidr = 7", 2, "cidr: must be 8 to 30; 7 is not"),
        ("cidr = 31", 1, "must be 8 to 30"),
        ('vmm = "xen"', 1, "must be one of auto, firecracker, qemu; 'xen' is not"),
        ('log_level = "loud"', 1, "must be one of debug, info"),
        ('root_disk = "zfs"', 1, "must be one of auto, reflink"),
        ('bridge_ip = "172.16.0"', 1, "not an IPv4 address"),
        ('bridge_ip = "::1"', 1, "not an IPv4 address"),
        ('bridge_ip = "127.0.0.1"', 1, "cannot be a bridge's address"),
        ('bridge_ip = "0.0.0.1"', 1, "cannot be a bridge's address"),
        ('bridge_ip = "224.0.0.1"', 1, "cannot be a bridge's address"),
        ('cidr = 24\nbridge_ip = "10.0.0.0"', 2, "bridge_ip: 10.0.0.0 is the network address of 10.0.0.0/24"),
        ('bridge_ip = "10.0.0.3"\ncidr = 30', 1, "is the broadcast address of 10.0.0.0/30"),
        ('bridge_name = "br-0123456789abc"', 1, "not the name of a network interface"),
        ('bridge_name = ""', 1, "not the name of a network interface"),
        ('bridge_name = "br/x"', 1, "not the name"),
        ('bridge_name = "-x"', 1, "not the name"),
        ('bridge_name = ".."', 1, "not the name"),
        ('bridge_name = "all"', 1, "cannot be the bridge's name"),
        ('bridge_name = "tap-pool-1"', 1, "cannot be the bridge's name"),
        ('dns_listen = "127.0.0.1"', 1, "not an address and a port"),
        ('dns_listen = "127.0.0.1:0"', 1, "'0' is not a port"),
        ('dns_listen = "127.0.0.1:65536"', 1, "not a port"),
        ('dns_listen = "127.0.0.1:٣"', 1, "not a port"),
        ('dns_listen = "host:53"', 1, "not an IPv4 address"),
        ('default_dns = "0.0.0.0"', 1, "cannot be a name server"),
        ("tap_pool_size = -1", 1, "must be 0 to 256"),
        ("tap_pool_size = " + "9" * 5000, 0, "not valid TOML"),
        ("tap_pool_size = 0x" + "f" * 1900, 1, "the number is not"),
        ("host_access = [80, 0]", 1, "host_access: entry 2: must be 1 to 65535"),
        ('host_access = ["80"]', 1, "entry 1: must be a whole number"),
        ("host_access = 80", 1, "must be a list of ports"),
        ('stats_poll_interval = "0"', 1, "must be at least 0.1s"),
        ('stats_poll_interval = "10"', 1, "has no unit"),
        ("stats_poll_interval = 10", 1, "must be a duration in quotes"),
        ('auto_stop_stale_after = "-1h"', 1, "is negative"),
        ('debian_mirror = "ftp://x"', 1, "not an http or https URL"),
        ('debian_mirror = "http://"', 1, "not an http or https URL"),
        ('debian_mirror = "http://a b"', 1, "not a plain URL"),
        ('debian_mirror = "http://a:b"', 1, "not a URL"),
        ('debian_mirror = "http://[x"', 1, "not a URL"),
        ('firecracker_bin = "firecracker"', 1, "is relative"),
        ('qemu_bin = "~bob/qemu"', 1, "names another user's home"),
        ('ssh_key_path = "/a/../b"', 1, "contains .."),
        ('ssh_key_path = "/a\\u0000b"', 1, "control character"),
        ('default_image_name = ""', 1, "not the name of an image"),
        # the jailer
        ("jailer_enabled = true", 1, "the jailer is not supported yet"),
        ('jailer_bin = "/bin/jailer"', 1, "the jailer is not supported yet"),
        # VM defaults
        ("[vm_defaults]\nvcpu = 0", 2, "[vm_defaults] vcpu: the count: 0 is not positive"),
        ("[vm_defaults]\nvcpu = 33", 2, "too many"),
        ("[vm_defaults]\nmemory_mib = 127", 2, "too small"),
        ("[vm_defaults]\nmemory_mib = 131073", 2, "too big"),
        ('[vm_defaults]\nmemory_mib = "1G"', 2, "must be a whole number"),
        ('[vm_defaults]\n\ndisk_size = "1M"', 3, "too small"),
        ('[vm_defaults]\ndisk_size = "8GB"', 2, "bad suffix"),
        ("[vm_defaults]\ndisk_size = 1.5", 2, 'must be a size such as "8G"'),
        ("[vm_defaults]\nnat = 1", 2, "must be true or false"),
        # tooling
        ('[tooling]\nmise_url = "mise"', 2, "[tooling] mise_url: 'mise' is not an http or https URL"),
        ('[tooling]\nmise_url = "https://example.org/{os}"', 2, "more than {arch} between braces"),
        ('[tooling]\nmise_url = "https://example.org/{arch} x"', 2, "not a plain URL"),
        ('[tooling]\nmise_sha256 = "abc"', 2, "not 64 hex digits"),
        # registries
        ("[[registry]]\ninsecure = true", 1, "registry entry 1: host is missing"),
        ('[[registry]]\nhost = "https://x"', 2, "not a host"),
        ('[[registry]]\nhost = "x:y"', 2, "not a host"),
        (
            '[[registry]]\nhost = "x"\n[[registry]]\nhost = "X"',
            4,
            "registry entry 2: host: 'x' is entry 1's already",
        ),
        ('[[registry]]\nhost = "x"\nmirror = "a/b"', 3, "neither a URL nor a host"),
        # the catalog
        ('[[catalog]]\nname = "a"', 1, "catalog entry 1: reference is missing"),
        (f'[[catalog]]\nname = "A"\nreference = "a@{DIGEST}"', 2, "entry 1: name: "),
        ('[[catalog]]\nname = "a"\nreference = "example.org/a:1"', 3, "does not end in @sha256:"),
        (f'[[catalog]]\nname = "a"\nreference = "a@{DIGEST}0"', 3, "does not end in @sha256:"),
        (f'[[catalog]]\nname = "a"\nreference = "a b@{DIGEST}"', 3, "is not an image reference"),
        (f'[[catalog]]\nname = "a"\nreference = "x/../b@{DIGEST}"', 3, "is not an image reference"),
        (
            f'[[catalog]]\nname = "a"\nreference = "a@{DIGEST}"\n' * 2,
            5,
            "catalog entry 2: name: 'a' is entry 1's already",
        ),
    ],
)
def test_each_fault_is_said_with_its_line(text: str, line: int, part: str) -> None:
    error = refused(text)
    assert part in error.brief
    assert error.data["line"] == line
    assert error.brief.startswith(f"{FILE}:{line}: " if line else f"{FILE}: ")


GOOD = '[[file_sync]]\nhost = "/etc/hosts"\nguest = "~/hosts"\n'


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("host", '""', "is empty"),
        ("host", '"  "', "is empty"),
        ("host", '"a/b"', "is relative"),
        ("host", '"./a"', "is relative"),
        ("host", '"/a/../b"', "contains .."),
        ("host", '"~/.."', "contains .."),
        ("host", '"~bob/x"', "names another user's home"),
        ("host", "1", "must be a text"),
        ("guest", '""', "is empty"),
        ("guest", '"x"', "is relative"),
        ("guest", '"~"', "not below /root"),
        ("guest", '"~/"', "not below /root"),
        ("guest", '"~/."', "not below /root"),
        ("guest", '"~/../etc/passwd"', "contains .."),
        ("guest", '"~bob/x"', "names another user's home"),
        ("guest", '"/etc/passwd"', "not below /root"),
        ("guest", '"//root"', "not below /root"),
        ("guest", f'"~/{"é" * 128}"', "a name of more than 255 bytes"),
        ("mode", '"rw"', "not an octal mode"),
        ("mode", '"0888"', "not an octal mode"),
        ("mode", '"4755"', "more than permission bits"),
        ("mode", '"77777"', "not an octal mode"),
        ("mode", "600", "must be an octal text in quotes"),
        ("mode", '""', "not an octal mode"),
        ("mode", "true", "must be a text"),
    ],
)
def test_file_sync_entries_are_refused_with_their_number_and_line(key: str, value: str, part: str) -> None:
    entry = {"host": '"/etc/motd"', "guest": '"~/motd"', key: value}
    lines = [f"{name} = {shown}" for name, shown in entry.items()]
    error = refused(GOOD + "[[file_sync]]\n" + "\n".join(lines) + "\n" + GOOD.replace("hosts", "issue"))
    line = 5 + list(entry).index(key)
    assert error.brief.startswith(f"{FILE}:{line}: file_sync entry 2: {key}: ")
    assert part in error.brief


def test_file_sync_needs_both_ends() -> None:
    error = refused(GOOD + '\n[[file_sync]]\nhost = "/etc/hosts"\n')
    assert error.brief == f"{FILE}:5: file_sync entry 2: guest is missing"
    assert error.hint == "valid keys: host, guest, mode"


def test_a_home_that_is_not_known_is_said() -> None:
    error = refused('firecracker_bin = "~/x"', home="")
    assert "HOME is not set" in error.brief


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = = 1", 1),
        ("\n\nvmm = 'auto'\nvmm = 'qemu'\n", 4),
        ("vmm = 'auto", 1),
        ("x = [1,\n2\n", 3),
        ("[vm_defaults", 1),
        ("\x00", 1),
        ("[" * 100_000, 0),
        ("x = " + "[" * 100_000, 0),
    ],
)
def test_syntax_errors_have_their_line(text: str, line: int) -> None:
    error = refused(text)
    assert "not valid TOML" in error.brief or "nested too deeply" in error.brief
    assert "\n" not in error.brief
    if line:
        assert error.data["line"] == line


def test_bytes_that_are_no_utf8_have_their_line() -> None:
    with pytest.raises(BangerError, match=":3: is not UTF-8") as caught:
        parse_settings(b"\n\nvmm = '\xff'\n", FILE)
    assert caught.value.code is ErrorCode.INVALID_CONFIG


def test_a_byte_order_mark_is_forgiven() -> None:
    assert parse_settings(b"\xef\xbb\xbfcidr = 20\r\n", FILE).cidr == 20


# the file itself


def test_no_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_settings(str(tmp_path / "config.toml"), {}) == Settings()
    assert load_settings(str(tmp_path / "no" / "config.toml"), {}) == Settings()


def test_the_environment_wins_over_the_log_level(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('log_level = "error"\n')
    assert load_settings(str(path), {}).log_level == "error"
    assert load_settings(str(path), {"BANGER_LOG_LEVEL": ""}).log_level == "error"
    assert load_settings(str(path), {"BANGER_LOG_LEVEL": "DEBUG"}).log_level == "debug"
    with pytest.raises(BangerError, match="BANGER_LOG_LEVEL must be one of") as caught:
        load_settings(str(path), {"BANGER_LOG_LEVEL": "loud"})
    assert caught.value.code is ErrorCode.INVALID_CONFIG


def test_home_is_the_environments(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('qemu_bin = "~/qemu"\n')
    assert load_settings(str(path), {"HOME": "/home/bob"}).qemu_bin == "/home/bob/qemu"


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(BangerError, match="is not a file") as caught:
            load_settings(str(tmp_path / name), {})
        assert caught.value.code is ErrorCode.INVALID_CONFIG
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BangerError, match="cannot be read"):
        load_settings(str(tmp_path / "loop"), {})
    with pytest.raises(BangerError, match="is not a path"):
        load_settings("a\0b", {})


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root reads everything
        os.seteuid(65534)
    try:
        with pytest.raises(BangerError, match="cannot be read") as caught:
            load_settings(str(path), {})
    finally:
        os.seteuid(user)
    assert caught.value.code is ErrorCode.PERMISSION_DENIED


def test_a_file_that_is_far_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(BangerError, match="larger than 1 MiB"):
        load_settings(str(path), {})


# whatever comes


def settings_or_error(content: bytes) -> Settings | BangerError:
    try:
        return parse_settings(content, FILE, home="/home/ann")
    except BangerError as error:
        return error


def check(outcome: Settings | BangerError, content: bytes) -> None:
    if isinstance(outcome, Settings):
        return
    assert outcome.code is ErrorCode.INVALID_CONFIG
    assert outcome.brief.startswith(FILE)
    assert outcome.brief.isprintable()
    assert len(outcome.brief) < 1500
    assert 0 <= outcome.data["line"] <= content.count(b"\n") + 1


@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    check(settings_or_error(content), content)


NAMES = st.sampled_from(
    [key.name for key in TOP]
    + [t.name for t in TABLES]
    + [k.name for t in TABLES for k in t.keys]
    + ["x", '"q q"', "a.b"]
)
RAW = st.sampled_from(
    [
        "1",
        "0",
        "-1",
        "true",
        '""',
        '"~"',
        '"/.."',
        "[]",
        "[1]",
        "{}",
        "[{}]",
        "1.5",
        "nan",
        "inf",
        "1979-05-27",
        "07:32:00",
    ]
) | st.text(max_size=12).map(lambda text: '"' + text.replace("\\", "").replace('"', "") + '"')
LINES = (
    st.builds("{} = {}".format, NAMES, RAW)
    | st.sampled_from(
        [f"[{t.name}]" for t in TABLES] + [f"[[{t.name}]]" for t in TABLES] + ["'''", "#", "[x]"]
    )
    | st.text(max_size=20)
)


@given(st.lists(LINES, max_size=8))
@example(["vm_defaults.vcpu = 0"])
@example(["file_sync = [{host = '/a', guest = '~/b', mode = 1}]"])
def test_any_lines_that_look_like_a_configuration(lines: list[str]) -> None:
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    check(settings_or_error(content), content)


@given(st.sampled_from(EVERYTHING.splitlines()), st.data())
def test_damage_to_a_good_file(line: str, data: st.DataObject) -> None:
    text = EVERYTHING.encode()
    start = data.draw(st.integers(0, len(text) - 1))
    content = text[:start] + data.draw(st.binary(max_size=3)) + text[start + data.draw(st.integers(0, 3)) :]
    check(settings_or_error(content + line.encode()), content + line.encode())
