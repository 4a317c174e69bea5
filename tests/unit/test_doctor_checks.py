"""Checks of a host: in their order, each with a bound, none in the way of the others."""

from __future__ import annotations

import time
from collections.abc import Iterable

import anyio

from corral_worker.doctor.check import Check, examine, in_thread
from corral_worker.doctor.checkup import checks
from corral_worker.doctor.configuration import read_configuration
from corral_worker.doctor.finding import Finding, ok


def check(name: str, *findings: Finding) -> Check:
    return Check(name=name, look=in_thread(lambda: findings), within_s=30)


async def test_checks_report_in_their_own_order() -> None:
    slow = anyio.Event()

    async def last() -> Iterable[Finding]:
        await slow.wait()
        return (ok("a", "slow"),)

    async def first() -> Iterable[Finding]:
        slow.set()
        return (ok("b", "quick"), ok("c", "quick"))

    found = await examine(
        [
            Check(name="a", look=last, within_s=30),
            Check(name="b", look=first, within_s=30),
        ]
    )

    assert [finding.name for finding in found.findings] == ["a", "b", "c"]
    assert not found.overdue


async def test_a_check_that_breaks_is_a_finding_and_keeps_no_other_from_its_own() -> None:
    def breaks() -> Iterable[Finding]:
        raise ZeroDivisionError("of course")

    broken = Check(name="bad", look=in_thread(breaks), within_s=30)

    found = await examine([broken, check("good", ok("good", "fine"))])

    bad, good = found.findings
    assert (bad.name, bad.status) == ("bad", "fail")
    assert "ZeroDivisionError: of course" in bad.seen
    assert good == ok("good", "fine")


async def test_a_check_that_hangs_is_given_up_and_is_a_finding() -> None:
    async def hangs() -> Iterable[Finding]:
        await anyio.sleep_forever()
        return ()

    found = await examine([Check(name="stuck", look=hangs, within_s=0.01)])

    assert found.findings[0].status == "fail"
    assert found.findings[0].seen == "no answer within 0.01 s"
    assert found.overdue


async def test_a_thread_that_hangs_is_left_behind() -> None:
    began = time.monotonic()
    released = False

    def hangs() -> Iterable[Finding]:
        while not released:
            time.sleep(0.01)
        return ()

    try:
        found = await examine([Check(name="stuck", look=in_thread(hangs), within_s=0.01)])
        assert found.overdue
        assert time.monotonic() - began < 20
    finally:
        released = True


async def test_a_timeout_of_what_is_looked_at_is_not_taken_for_our_own() -> None:
    async def times_out() -> Iterable[Finding]:
        raise TimeoutError("theirs")

    found = await examine([Check(name="x", look=times_out, within_s=30)])

    assert "TimeoutError: theirs" in found.findings[0].seen
    assert not found.overdue


def test_every_check_has_a_bound_and_a_name_of_its_own() -> None:
    made = checks(read_configuration(None, {}))

    assert all(0 < each.within_s <= 180 for each in made)
    assert len({each.name for each in made}) == len(made)
