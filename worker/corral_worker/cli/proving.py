"""What ``corral doctor --prove`` does and prints."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import click
import msgspec
from rich.text import Text

from corral_worker.cli.tables import console, table
from corral_worker.cli.text import printable
from corral_worker.cli.units import size_text
from corral_worker.prove.attack import Attack
from corral_worker.prove.campaign import Campaign, attack_host
from corral_worker.prove.catalog import ATTACKS
from corral_worker.prove.prover import Proof
from corral_worker.settings import Settings

_AT_ONCE = 3


def chosen(names: Sequence[str]) -> tuple[Attack, ...]:
    """Return the attacks of these names; all of them if there are none.

    Raises:
        click.BadParameter: there is no such attack.
    """
    known = {attack.name: attack for attack in ATTACKS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.BadParameter(
            f"{', '.join(unknown)}: no such attack; there are {', '.join(known)}",
            param_hint="--only",
        )
    return tuple(attack for attack in ATTACKS if not names or attack.name in names)


def prove(settings: Settings, attacks: Sequence[Attack], *, slowness: float) -> Campaign:
    """Attack this host and return what came of it.

    Raises:
        CorralError: no worker could start here.
        OSError: what attacks are to find on the host cannot be set out.
    """

    async def attack() -> Campaign:
        return await attack_host(settings, attacks, slowness=slowness, at_once=_AT_ONCE)

    return anyio.run(attack)


def as_json(campaign: Campaign) -> bytes:
    """Return one JSON object; fields may be added to it, and never change their meaning."""
    return msgspec.json.encode(campaign)


def show(campaign: Campaign) -> None:
    """Print what people read: a line for each attack, then what is not as it should be."""
    rows = table("attack", "", "outcome", "took", "peak memory", "peak tasks", "killed in")
    for proof in campaign.attacks:
        rows.add_row(
            proof.name,
            Text("pass", "green") if proof.passed else Text("FAIL", "bold red"),
            Text(proof.outcome),
            f"{proof.duration_s:.1f} s",
            _of(proof.peak_memory_bytes, proof.memory_limit_bytes),
            "-" if proof.peak_tasks is None else f"{proof.peak_tasks} of {proof.tasks_limit}",
            "-" if proof.kill_latency_s is None else f"{proof.kill_latency_s * 1000:.0f} ms",
        )
    screen = console()
    screen.print(rows)
    screen.print()
    for proof in campaign.attacks:
        for line in _failure(proof):
            screen.print(Text(printable(line)))
    for what in campaign.left:
        screen.print(Text(printable(f"left behind: {what}")))
    screen.print(Text(summary(campaign)))


def summary(campaign: Campaign) -> str:
    """Return in one line how many attacks came to nothing, and on what."""
    passed = sum(proof.passed for proof in campaign.attacks)
    return (
        f"{passed} of {len(campaign.attacks)} attacks came to nothing, in"
        f" {campaign.duration_s:.0f} s; runsc {campaign.runsc_version}, {campaign.platform},"
        f" cgroup version {campaign.cgroup_version}"
    )


def _failure(proof: Proof) -> Sequence[str]:
    if proof.passed:
        return ()
    return (
        f"{proof.name}: expected: {proof.expected}",
        *(f"  {complaint}" for complaint in proof.complaints),
    )


def _of(used: int | None, limit: int | None) -> str:
    if used is None or limit is None:
        return "-"
    return f"{size_text(used)} of {size_text(limit)}"
