"""Routes about the host: what is on it that nothing explains. The judging is vm/planner.py's."""

from __future__ import annotations

from aiohttp import web

from banger.api.replies import Audit, AuditFinding
from banger.daemon.context import Handler, answer, daemon_of
from banger.errors import BangerError
from banger.vm.planner import Finding


def reply_of(finding: Finding, *, fixed: bool = False, failure: str = "") -> AuditFinding:
    return AuditFinding(
        kind=finding.kind,
        name=finding.name,
        problem=finding.problem,
        vm_id=finding.vm_id,
        fixable=bool(finding.fix),
        fixed=fixed,
        failure=failure,
    )


async def audit(request: web.Request) -> web.StreamResponse:
    findings = await daemon_of(request).services.vms.audit()
    return answer(Audit(findings=tuple(reply_of(finding) for finding in findings)))


async def repair(request: web.Request) -> web.StreamResponse:
    vms = daemon_of(request).services.vms
    findings = await vms.audit()
    failures = [(finding, _brief(error)) for finding, error in await vms.repair(findings)]
    replies = []
    for finding in findings:
        failure = next((brief for failed, brief in failures if failed is finding), "")
        replies.append(reply_of(finding, fixed=bool(finding.fix) and not failure, failure=failure))
    return answer(Audit(findings=tuple(replies)))


def _brief(error: BaseException) -> str:
    return error.brief if isinstance(error, BangerError) else f"{type(error).__name__}: {error}"


HANDLERS: dict[str, Handler] = {"host.audit": audit, "host.repair": repair}
