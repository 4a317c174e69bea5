"""``corral tenants``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict, TypeVar, Unpack

import click
import msgspec
from rich.text import Text

from corral import CorralError, PolicyNarrowing
from corral_worker.cli import tenants_text
from corral_worker.cli.asking import fail, finish, operators_redis
from corral_worker.cli.tables import console, table
from corral_worker.cli.text import printable
from corral_worker.cli.units import byte_size
from corral_worker.queue.tenant_config import (
    MOST_POLICY_BYTES,
    ErrInvalidSetting,
    SettingName,
    TenantConfig,
    parse_policy,
)
from corral_worker.queue.tenants import (
    MOST_LISTED,
    Defaults,
    ErrTenantNotFound,
    Tenants,
    TenantState,
    Unknown,
)

C = TypeVar("C", bound=Callable[..., object])
T = TypeVar("T")

_NAMES: Mapping[str, SettingName] = MappingProxyType(
    {
        "weight": "weight",
        "concurrency": "concurrency",
        "depth": "depth",
        "payload": "payload_bytes",
        "suspended": "suspended",
        "policy": "policy",
    }
)


class _Numbers(TypedDict):
    weight: float | None
    concurrency: int | None
    depth: int | None
    payload: int | None
    suspended: bool | None
    unset: tuple[str, ...]
    json: bool


class _Own(_Numbers):
    name: str
    policy: Path | None


class _ForAll(_Numbers):
    unknown: Unknown | None


def _numbers(command: C) -> C:
    for option in reversed(
        (
            click.option("--weight", type=float, help="Share of the workers' time; 1 is usual."),
            click.option("--concurrency", type=int, help="Most jobs running at once; 0: no cap."),
            click.option("--depth", type=int, help="Most jobs queued or running; 0: no cap."),
            click.option(
                "--payload",
                type=byte_size,
                metavar="SIZE",
                help="Largest encoded job, such as 64K; 0: no cap.",
            ),
            click.option(
                "--suspend/--resume",
                "suspended",
                default=None,
                help="Let the jobs wait, or run again. Those that run go on.",
            ),
            click.option(
                "--unset",
                type=click.Choice(list(_NAMES)),
                multiple=True,
                help="Back to the default; may be repeated.",
            ),
            click.option("--json", is_flag=True, help="Print what holds then as a JSON object."),
        )
    ):
        command = option(command)
    return command


@click.group()
def tenants() -> None:
    """Set and show what tenants may do: shares, caps, policies.

    The settings lie in the Redis that CORRAL_REDIS_URL names; all workers
    follow a change at once. Jobs that run are not disturbed.
    """


@tenants.command(name="set")
@click.argument("name")
@_numbers
@click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What its jobs may not ask for: .toml or .json, as [tenants.NAME.policy] in the"
    " workers' settings. It can only narrow.",
)
def set_tenant(**options: Unpack[_Own]) -> None:
    """Change settings of the tenant NAME, and make it a known one."""
    config = _config(options, policy=options["policy"])
    unset = _unset(options)

    async def change(known: Tenants) -> TenantState:
        await known.set(options["name"], config, unset=unset)
        return await known.show(options["name"])

    _show(_ask(change), as_json=options["json"])


@tenants.command()
@click.argument("name")
@click.option("--json", is_flag=True, help="Print a JSON object.")
def show(*, name: str, json: bool) -> None:
    """Show the settings of the tenant NAME, where they come from, and its jobs."""
    _show(_ask(lambda known: known.show(name)), as_json=json)


@tenants.command(name="list")
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_LISTED),
    default=100,
    show_default=True,
    help="How many to list at most.",
)
@click.option("--json", is_flag=True, help="Print a JSON array.")
def list_tenants(*, limit: int, json: bool) -> None:
    """List the tenants that were set up or have submitted, by name."""
    page = _ask(lambda known: known.page(limit))
    if json:
        click.echo(msgspec.json.encode(page.tenants))
    else:
        rows = table(*tenants_text.COLUMNS)
        for state in page.tenants:
            rows.add_row(*map(Text, tenants_text.row(state)))
        console().print(rows)
    if page.more:
        click.echo(f"corral: there are more than these {limit}: see --limit", err=True)


@tenants.command()
@click.argument("name")
def remove(*, name: str) -> None:
    """Forget all settings of the tenant NAME: the defaults hold again. Its jobs stay."""
    if not _ask(lambda known: known.remove(name)):
        fail(ErrTenantNotFound(f"tenant {name} has no settings of its own"))
    click.echo(f"removed the settings of {printable(name)}")


@tenants.command()
@_numbers
@click.option(
    "--open",
    "unknown",
    flag_value="open",
    help="Tenants without settings of their own may submit, too.",
)
@click.option("--closed", "unknown", flag_value="closed", help="They may not, nor are they served.")
def default(**options: Unpack[_ForAll]) -> None:
    """Show, or change, what holds for tenants without settings of their own."""
    config = _config(options)
    unset = _unset(options)

    async def change(known: Tenants) -> Defaults:
        if unset or options["unknown"] or config != TenantConfig():
            await known.set_defaults(config, unknown=options["unknown"], unset=unset)
        return await known.defaults()

    found = _ask(change)
    if options["json"]:
        click.echo(msgspec.json.encode(found))
        return
    rows = table("setting", "default")
    for pair in tenants_text.default_rows(found):
        rows.add_row(*map(Text, pair))
    console().print(rows)


def _ask(question: Callable[[Tenants], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with operators_redis() as redis:
            return await question(Tenants(redis))

    return finish(ask)


def _show(state: TenantState, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(state))
        return
    rows = table("setting", "value", "from")
    for line in tenants_text.state_rows(state):
        rows.add_row(*map(Text, line))
    console().print(rows)


def _unset(options: _Numbers) -> frozenset[SettingName]:
    return frozenset(_NAMES[name] for name in options["unset"])


def _config(options: _Numbers, *, policy: Path | None = None) -> TenantConfig:
    return TenantConfig(
        weight=options["weight"],
        concurrency=options["concurrency"],
        depth=options["depth"],
        payload_bytes=options["payload"],
        suspended=options["suspended"],
        policy=None if policy is None else _read_policy(policy),
    )


def _read_policy(path: Path) -> PolicyNarrowing:
    try:
        with path.open("rb") as file:
            # A policy is small: what is larger is another file.
            text = file.read(16 * MOST_POLICY_BYTES)
        match path.suffix:
            case ".toml":
                return parse_policy(text, kind="toml")
            case ".json":
                return parse_policy(text, kind="json")
            case _:
                fail(ErrInvalidSetting(f"policy: {path.name} is neither .toml nor .json"))
    except OSError as error:
        fail(ErrInvalidSetting(f"policy: {path} cannot be read: {error.strerror}"))
    except CorralError as error:
        fail(error)
