"""Where banger keeps things: one frozen object, computed from the environment.

Imports only the standard library, so that CLI and client may use it. Creates nothing.
User mode follows XDG; root uses /etc, /var/lib, /var/cache and /run (system mode);
BANGER_HOME=DIR puts all of it below one folder. ARCHITECTURE.md lists every file.
"""

from __future__ import annotations

import os


class Paths:
    """All absolute paths, as str. `home` is empty unless BANGER_HOME is set.

    A plain class: the CLI reads it on every command, and dataclasses costs more than all of this.
    """

    __slots__ = ("cache_dir", "config_file", "home", "runtime_dir", "state_dir")

    def __init__(
        self, home: str, config_file: str, *, state_dir: str, cache_dir: str, runtime_dir: str
    ) -> None:
        self.home: str = home
        self.config_file: str = config_file
        self.state_dir: str = state_dir
        self.cache_dir: str = cache_dir
        self.runtime_dir: str = runtime_dir

    @property
    def socket(self) -> str:
        """The daemon's API socket, mode 0600."""
        return f"{self.runtime_dir}/bangerd.sock"

    @property
    def daemon_log(self) -> str:
        return f"{self.state_dir}/bangerd.log"

    @property
    def database(self) -> str:
        return f"{self.state_dir}/banger.db"

    @property
    def vms_dir(self) -> str:
        """One folder per VM, named by its full id, mode 0700."""
        return f"{self.state_dir}/vms"

    @property
    def work_dir(self) -> str:
        """One folder per VM that had a workspace, named by its full id: its work. Outlives the VM."""
        return f"{self.state_dir}/work"

    @property
    def images_dir(self) -> str:
        return f"{self.state_dir}/images"

    @property
    def kernels_dir(self) -> str:
        return f"{self.state_dir}/kernels"

    @property
    def tools_dir(self) -> str:
        """Programs that the host's release lacks, unpacked from their .deb."""
        return f"{self.state_dir}/tools"

    @property
    def ssh_dir(self) -> str:
        return f"{self.state_dir}/ssh"

    @property
    def known_hosts(self) -> str:
        """The host keys that banger made for its guests, as ssh reads them."""
        return f"{self.ssh_dir}/known_hosts"

    @property
    def ssh_config(self) -> str:
        """What `ssh-config --install` has the user's configuration include."""
        return f"{self.ssh_dir}/config"

    @property
    def ports_dir(self) -> str:
        """The working directory of the process that carries published ports: its pid file and its log."""
        return f"{self.state_dir}/ports"

    @property
    def downloads_dir(self) -> str:
        return f"{self.cache_dir}/downloads"

    def vm_dir(self, vm_id: str) -> str:
        return f"{self.vms_dir}/{vm_id}"


def resolve_paths(environ: dict[str, str] | None = None, *, uid: int | None = None) -> Paths:
    """The paths for this environment (default: the process's own) and user."""
    env = dict(os.environ) if environ is None else environ
    uid = os.getuid() if uid is None else uid
    home = env.get("BANGER_HOME", "")
    if home:
        home = os.path.abspath(home)
        return Paths(
            home=home,
            config_file=f"{home}/config.toml",
            state_dir=f"{home}/state",
            cache_dir=f"{home}/cache",
            runtime_dir=f"{home}/run",
        )
    if uid == 0:
        return Paths(
            home="",
            config_file="/etc/banger/config.toml",
            state_dir="/var/lib/banger",
            cache_dir="/var/cache/banger",
            runtime_dir="/run/banger",
        )
    user_home = _absolute(env, "HOME") or "/"
    config = _absolute(env, "XDG_CONFIG_HOME") or f"{user_home}/.config"
    state = _absolute(env, "XDG_STATE_HOME") or f"{user_home}/.local/state"
    cache = _absolute(env, "XDG_CACHE_HOME") or f"{user_home}/.cache"
    runtime = _absolute(env, "XDG_RUNTIME_DIR")
    return Paths(
        home="",
        config_file=f"{config}/banger/config.toml",
        state_dir=f"{state}/banger",
        cache_dir=f"{cache}/banger",
        runtime_dir=f"{runtime}/banger" if runtime else f"{state}/banger/run",
    )


def _absolute(env: dict[str, str], name: str) -> str:
    """The XDG specification has relative paths ignored; "" for those and for what is not set."""
    path = env.get(name, "")
    return path.rstrip("/") if path.startswith("/") else ""
