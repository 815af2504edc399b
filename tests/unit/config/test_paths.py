"""Where things are: XDG for users, system folders for root, one folder for BANGER_HOME."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from banger.config.paths import Paths, resolve_paths


def folders(paths: Paths) -> tuple[str, str, str, str]:
    return paths.config_file, paths.state_dir, paths.cache_dir, paths.runtime_dir


def test_a_user_without_xdg_variables() -> None:
    assert folders(resolve_paths({"HOME": "/home/ann"}, uid=1000)) == (
        "/home/ann/.config/banger/config.toml",
        "/home/ann/.local/state/banger",
        "/home/ann/.cache/banger",
        "/home/ann/.local/state/banger/run",
    )


def test_a_user_with_xdg_variables() -> None:
    environ = {
        "HOME": "/home/ann",
        "XDG_CONFIG_HOME": "/c",
        "XDG_STATE_HOME": "/s/",
        "XDG_CACHE_HOME": "/h",
        "XDG_RUNTIME_DIR": "/run/user/1000",
    }
    assert folders(resolve_paths(environ, uid=1000)) == (
        "/c/banger/config.toml",
        "/s/banger",
        "/h/banger",
        "/run/user/1000/banger",
    )


def test_root_is_the_system() -> None:
    assert folders(resolve_paths({"HOME": "/root", "XDG_STATE_HOME": "/s"}, uid=0)) == (
        "/etc/banger/config.toml",
        "/var/lib/banger",
        "/var/cache/banger",
        "/run/banger",
    )


def test_a_home_of_its_own_holds_everything() -> None:
    paths = resolve_paths({"BANGER_HOME": "here", "XDG_STATE_HOME": "/s"}, uid=0)
    home = os.path.abspath("here")
    assert paths.home == home
    everything = [
        *folders(paths),
        *(paths.socket, paths.daemon_log, paths.database, paths.vms_dir, paths.images_dir),
        *(paths.kernels_dir, paths.tools_dir, paths.ssh_dir, paths.downloads_dir, paths.vm_dir("x")),
    ]
    assert all(path.startswith(f"{home}/") for path in everything)
    assert len(set(everything)) == len(everything)


VARIABLES = ("HOME", "BANGER_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
VALUES = st.sampled_from(["", "/", "relative", "../up", "/abs", "/abs/", "~", "~/x"])


@given(st.dictionaries(st.sampled_from(VARIABLES), VALUES), st.sampled_from([0, 1000]))
def test_every_path_is_absolute_whatever_the_environment(environ: dict[str, str], uid: int) -> None:
    assert all(path.startswith("/") for path in folders(resolve_paths(environ, uid=uid)))
