"""The firewall: what it makes of the records, when it does, and what it remembers before it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import msgspec
import pytest

from banger.config.settings import Settings
from banger.helper import ruleset
from banger.helper.interface import FirewallRules, Helper
from banger.model.records import VMRecord, VMRuntime, VMSpec
from banger.model.states import VMState
from banger.network.bridges import bridges_of
from banger.network.firewall import FORWARDING_KEY, Firewall
from banger.store.database import Database
from banger.store.settings import SettingTable

pytestmark = pytest.mark.anyio

INSTANCE = "0123456789abcdef"
MOMENT = datetime(2026, 11, 21, tzinfo=UTC)


class Kernel:
    """The helper's tables and its one setting, with memory."""

    def __init__(self) -> None:
        self.rules: FirewallRules | None = None
        self.applied = 0
        self.on = False
        self.others = False
        self.fails = ""  # or when: "early", "late"

    async def apply_firewall(self, rules: FirewallRules) -> None:
        if self.fails:
            self.rules = rules if self.fails == "late" else self.rules
            raise OSError(16, "busy")
        self.rules = rules
        self.applied += 1

    async def firewall_drift(self, rules: FirewallRules) -> str:
        return "" if rules == self.rules else "have been changed"

    async def remove_firewall(self) -> None:
        self.rules = None

    async def forwarding(self) -> bool:
        return self.on

    async def set_forwarding(self, on: bool) -> None:
        self.on = on

    async def others_need_forwarding(self) -> bool:
        return self.others


def record_of(number: int, *, nat: bool = False, tap: bool = True) -> VMRecord:
    return VMRecord(
        id=f"{number:064x}",
        name=f"vm{number}",
        image_id="i",
        state=VMState.RUNNING,
        created_at=MOMENT,
        updated_at=MOMENT,
        last_touched_at=MOMENT,
        spec=VMSpec(nat_enabled=nat),
        runtime=VMRuntime(guest_ip=f"172.16.0.{number}", tap_device=f"tap-fc-{number}" if tap else ""),
    )


@pytest.fixture
async def before(tmp_path: Path) -> AsyncIterator[SettingTable]:
    database = await Database.open(str(tmp_path / "banger.db"))
    yield SettingTable(database)
    await database.close()


def firewall_of(kernel: Kernel, records: list[VMRecord], before: SettingTable) -> Firewall:
    return Firewall(cast(Helper, kernel), Settings(), records=lambda: records, before=before)


async def test_it_knows_whoever_has_a_tap_in_the_store_and_is_made_once(before: SettingTable) -> None:
    kernel, records = Kernel(), [record_of(2), record_of(3, tap=False)]
    firewall = firewall_of(kernel, records, before)
    assert not firewall.expected()
    await firewall.refresh()
    await firewall.refresh()
    assert kernel.applied == 1
    assert firewall.expected()
    assert kernel.rules is not None
    assert [(guest.tap, guest.mac, guest.address, guest.nat) for guest in kernel.rules.guests] == [
        ("tap-fc-2", "06:00:ac:10:00:02", "172.16.0.2", False)
    ]
    await firewall.mend()
    assert kernel.applied == 2
    records[:] = [record_of(3, tap=False)]
    await firewall.refresh()
    assert kernel.rules.guests == ()
    records.clear()
    await firewall.mend()
    assert kernel.rules is None
    assert not firewall.expected()


@pytest.mark.parametrize("when", ["early", "late"])
async def test_what_could_not_be_made_is_told_and_made_the_next_time(before: SettingTable, when: str) -> None:
    kernel, records = Kernel(), [record_of(2)]
    firewall = firewall_of(kernel, records, before)
    assert await firewall.drift() == ("are missing", "")  # a VM runs, and nothing guards it
    await firewall.refresh()
    records.append(record_of(3))
    kernel.fails = when
    with pytest.raises(OSError, match="busy"):
        await firewall.refresh()
    assert await firewall.drift() == ("could not be brought up to date", "")
    kernel.fails = ""
    records.pop()  # the start that failed is undone: as it was, by the records
    await firewall.refresh()
    assert await firewall.drift() == ("", "")
    assert kernel.rules is not None
    assert len(kernel.rules.guests) == 1


async def test_what_forwarding_was_is_written_down_before_and_put_back(before: SettingTable) -> None:
    kernel, records = Kernel(), [record_of(2)]
    firewall = firewall_of(kernel, records, before)
    await firewall.refresh()
    assert not kernel.on
    records[0] = record_of(2, nat=True)
    await firewall.refresh()
    assert kernel.on
    assert firewall.forwarding_changed()
    assert kernel.rules is not None
    assert kernel.rules.forwarding_was_off
    kernel.on = False
    assert (await firewall.drift())[1] == "is switched off, and VMs with NAT run"
    # the daemon dies; the next one has the store alone
    after = firewall_of(kernel, records, before)
    await after.refresh()
    assert kernel.on
    records.clear()
    await after.remove()
    assert not kernel.on
    assert kernel.rules is None
    assert before.get(FORWARDING_KEY) is None


@pytest.mark.parametrize("others", [False, True])
async def test_forwarding_that_was_on_stays_on_unless_another_banger_switched_it_on(
    before: SettingTable, others: bool
) -> None:
    kernel = Kernel()
    kernel.on, kernel.others = True, others
    firewall = firewall_of(kernel, [record_of(2, nat=True)], before)
    await firewall.refresh()
    kernel.others = False  # it has gone
    await firewall.remove()
    assert kernel.on is not others


async def test_while_another_banger_needs_forwarding_it_stays(before: SettingTable) -> None:
    kernel = Kernel()
    firewall = firewall_of(kernel, [record_of(2, nat=True)], before)
    await firewall.refresh()
    kernel.others = True
    await firewall.remove()
    assert kernel.on
    assert not firewall.forwarding_changed()


async def test_forwarding_stays_where_nobody_can_say_who_else_needs_it(
    before: SettingTable, caplog: pytest.LogCaptureFixture
) -> None:
    async def unseen() -> Sequence[str]:
        raise OSError("nft did not end within 10 s")

    kernel = Kernel()
    firewall = Firewall(
        cast(Helper, kernel),
        Settings(),
        records=lambda: [record_of(2, nat=True)],
        before=before,
        others=unseen,
    )
    await firewall.refresh()
    await firewall.remove()
    assert kernel.on
    assert kernel.rules is None
    assert not firewall.forwarding_changed()
    assert "stays on: who else needs it cannot be seen: nft did not end" in caplog.text


def test_every_rule_says_what_it_is_for() -> None:
    rules = FirewallRules(bridge="br-fc", address="172.16.0.1")
    for variant in (rules, msgspec.structs.replace(rules, isolated=False, forwarding_was_off=True)):
        text = ruleset.ruleset(INSTANCE, variant)
        assert list(ruleset.declared(text)) == list(ruleset.tables(INSTANCE))
        for line in text.splitlines():
            judges = line.strip().endswith(("accept", "drop", "masquerade", "admin-prohibited"))
            assert not judges, line
            if 'comment "' in line:
                assert len(line.split('comment "')[1]) <= 128, line


@pytest.mark.parametrize("isolated", [True, False])
async def test_guests_on_two_bridges(before: SettingTable, isolated: bool) -> None:
    """Both are named; between them the host forwards only where guests may reach each other."""
    kernel, records = Kernel(), [record_of(2)]
    settings = Settings(network_isolation=isolated)
    firewall = Firewall(
        cast(Helper, kernel),
        settings,
        records=lambda: records,
        before=before,
        bridges=bridges_of(settings, guests=4),
    )
    await firewall.refresh()
    assert kernel.rules is not None
    assert (kernel.rules.further, kernel.on) == ((), False)
    records.append(record_of(5))
    await firewall.refresh()
    assert (kernel.rules.further, kernel.on) == (("br-fc-1",), not isolated)
    text = ruleset.ruleset(INSTANCE, kernel.rules)
    assert text.count('"br-fc"') == text.count('{ "br-fc", "br-fc-1" }') == 5
    kernel.on = False
    assert bool((await firewall.drift())[1]) is not isolated
    await firewall.remove()
    assert not firewall.forwarding_changed()
