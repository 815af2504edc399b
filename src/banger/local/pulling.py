"""What a pull's request carries of the user's: credentials for the registry and its configured mirrors.

Called by the CLI, as the user; the daemon gets them with the request and keeps them for that pull only.
"""

from __future__ import annotations

from typing import Any

import msgspec

from banger.config.toml import load_settings
from banger.errors import BangerError
from banger.image.oci.reference import parse_reference
from banger.local import credentials


def request_credentials(reference: str, config_file: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the request's `credentials`, a line each on what could not be used). Blocking: helpers may ask.

    Nothing for what is no reference (a name of the catalog, or nonsense, which the daemon refuses).
    """
    try:
        parsed = parse_reference(reference)
        registries = load_settings(config_file).registries
    except BangerError:
        return {}, ()
    mirrors = [
        entry.mirror.rpartition("://")[2].partition("/")[0]
        for entry in registries
        if entry.mirror and entry.host == parsed.registry.lower()
    ]
    found = credentials.find(parsed, mirrors=mirrors)
    return {key: msgspec.to_builtins(value) for key, value in found.credentials.items()}, found.notes
