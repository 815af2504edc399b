"""What a pull's request carries of the user's: credentials for the registry and its configured mirrors.

Called by the CLI, as the user; the daemon gets them with the request and keeps them for that pull only.
"""

from __future__ import annotations

from typing import Any

import msgspec

from banger.config.toml import load_settings
from banger.errors import BangerError
from banger.image.catalog import IMAGES
from banger.image.oci.reference import parse_reference
from banger.local import credentials


def request_credentials(reference: str, config_file: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the request's `credentials`, a line each on what could not be used). Blocking: helpers may ask.

    Nothing for a Debian image of the catalog, and for nonsense, which the daemon refuses.
    """
    try:
        settings = load_settings(config_file)
        registries = settings.registries
        added = {entry.name: entry.reference for entry in settings.catalog}
        if reference in IMAGES and reference not in added:
            return {}, ()
        parsed = parse_reference(added.get(reference, reference))
    except BangerError:
        return {}, ()
    mirrors = [
        entry.mirror.rpartition("://")[2].partition("/")[0]
        for entry in registries
        if entry.mirror and entry.host == parsed.registry.lower()
    ]
    found = credentials.find(parsed, mirrors=mirrors)
    return {key: msgspec.to_builtins(value) for key, value in found.credentials.items()}, found.notes
