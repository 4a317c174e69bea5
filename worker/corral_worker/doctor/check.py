"""Looks that are independent of each other: none can hang or break the rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
import anyio.to_thread
import msgspec

from corral_worker.doctor.finding import Finding, fail

Look = Callable[[], Awaitable[Iterable[Finding]]]

_REPORT = "Report this as a defect of corral, with the output of 'corral doctor --json'."


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the host, with a bound on its time."""

    name: str
    """What a finding is called if there is none of the look's own."""
    look: Look
    within_s: float


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found, in the checks' order."""

    findings: tuple[Finding, ...]
    overdue: bool
    """Whether a look was given up: its thread may hang in the kernel for ever."""


def in_thread(look: Callable[[], Iterable[Finding]]) -> Look:
    """Return a look that may block, as one that does not.

    If its time is up its thread is left behind.
    """

    async def looked() -> Iterable[Finding]:
        return await anyio.to_thread.run_sync(lambda: tuple(look()), abandon_on_cancel=True)

    return looked


async def examine(checks: Sequence[Check]) -> Examined:
    """Do all checks at the same time and return what they found.

    A check that takes too long or breaks is a finding itself. Cancellation
    ends them all.
    """
    found: dict[int, tuple[Finding, ...]] = {}
    overdue: set[int] = set()

    async def one(index: int, check: Check) -> None:
        try:
            with anyio.fail_after(check.within_s) as scope:
                found[index] = tuple(await check.look())
        except Exception as error:  # noqa: BLE001 - whatever it is, the other findings count
            if scope.cancelled_caught:
                overdue.add(index)
                found[index] = (_hung(check),)
            else:
                found[index] = (_broken(check, error),)

    async with anyio.create_task_group() as tasks:
        for index, check in enumerate(checks):
            tasks.start_soon(one, index, check)
    return Examined(
        findings=tuple(finding for index in range(len(checks)) for finding in found[index]),
        overdue=bool(overdue),
    )


def _hung(check: Check) -> Finding:
    return fail(
        check.name,
        f"no answer within {check.within_s:g} s",
        "Look for a disk, a mount or a service that hangs, or a host that is overloaded.",
    )


def _broken(check: Check, error: Exception) -> Finding:
    return fail(check.name, f"the check itself broke: {type(error).__name__}: {error}", _REPORT)
