"""Records as the wire shows them. Pure."""

from __future__ import annotations

from banger.api.replies import RuntimeReply, VMReply
from banger.daemon.contracts import Images
from banger.errors import BangerError
from banger.model.guestview import PublishedState
from banger.model.records import VMRecord


def image_names(images: Images) -> dict[str, str]:
    """Image ids to names; read once per request."""
    return {image.id: image.name for image in images.list()}


def vm_reply(
    record: VMRecord, names: dict[str, str], *, published: tuple[PublishedState, ...] = ()
) -> VMReply:
    runtime = record.runtime
    fields = {name: getattr(runtime, name) for name in runtime.__struct_fields__}
    return VMReply(
        id=record.id,
        name=record.name,
        image_id=record.image_id,
        image=names.get(record.image_id, ""),
        state=record.state,
        auto_remove=record.auto_remove,
        created_at=record.created_at,
        updated_at=record.updated_at,
        last_touched_at=record.last_touched_at,
        spec=record.spec,
        runtime=RuntimeReply(**fields, state=record.state, published=published),
        stats=record.stats,
        workspace=record.workspace,
    )


def show(record: VMRecord, images: Images, *, published: tuple[PublishedState, ...] = ()) -> VMReply:
    """One VM; an image that cannot be read leaves its name out and hides nothing else."""
    try:
        names = image_names(images)
    except BangerError:
        names = {}
    return vm_reply(record, names, published=published)
