"""``corral dead``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import msgspec
from rich.text import Text

from corral import CorralError
from corral_worker.cli.asking import finish, operators_redis
from corral_worker.cli.tables import console, table
from corral_worker.cli.text import printable
from corral_worker.cli.units import size_text
from corral_worker.queue.dead import MOST_LISTED, DeadJob, DeadLetter, DeadLetters

T = TypeVar("T")


@click.group()
def dead() -> None:
    """Show, retry or drop jobs that were given up.

    A job is given up if its workers went away again and again while they held
    it, or if it is malformed. It is kept for 30 days.
    """


@dead.command(name="list")
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_LISTED),
    default=100,
    show_default=True,
    help="How many to list at most.",
)
@click.option("--json", is_flag=True, help="Print a JSON array.")
def list_dead(*, limit: int, json: bool) -> None:
    """List the jobs that were given up, the newest first."""
    found = _ask(lambda letters: letters.newest(limit))
    if json:
        click.echo(msgspec.json.encode(found))
        return
    rows = table("job", "given up", "why", "lost leases", "size")
    for letter in found:
        rows.add_row(
            Text(printable(letter.job_id)),
            f"{letter.given_up_at:%Y-%m-%d %H:%M}",
            Text(printable(letter.why)),
            str(letter.lost_leases),
            _size(letter),
        )
    console().print(rows)


@dead.command()
@click.argument("job_id", metavar="ID")
@click.option("--json", is_flag=True, help="Print a JSON object.")
def show(*, job_id: str, json: bool) -> None:
    """Show why and when a job was given up, and what it was; never its data."""
    letter, asked_for = _ask(lambda letters: letters.show(job_id))
    if json:
        click.echo(as_json(letter, asked_for))
        return
    rows = table("", "")
    for name, value in describe(letter, asked_for):
        rows.add_row(name, Text(printable(value)))
    console().print(rows)


@dead.command()
@click.argument("job_id", metavar="ID")
def retry(*, job_id: str) -> None:
    """Put a job back on its queue, as if it had never been tried."""
    _ask(lambda letters: letters.retry(job_id))
    click.echo(f"{printable(job_id)} is on its queue again")


@dead.command()
@click.argument("job_id", metavar="ID")
def drop(*, job_id: str) -> None:
    """Delete a job that was given up."""
    _ask(lambda letters: letters.drop(job_id))
    click.echo(f"dropped {printable(job_id)}")


def describe(letter: DeadLetter, asked_for: DeadJob | CorralError) -> list[tuple[str, str]]:
    """Return names and values of what there is to say of a dead letter."""
    lines = [
        ("job", letter.job_id),
        ("tenant", letter.tenant),
        ("given up", f"{letter.given_up_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("why", letter.why),
        ("lost leases", str(letter.lost_leases)),
        ("starts", str(letter.starts)),
        ("size", _size(letter)),
    ]
    if isinstance(asked_for, CorralError):
        return [*lines, ("job data", f"{asked_for.code}: {asked_for.message}")]
    return [
        *lines,
        ("program", f"{asked_for.program} ({asked_for.arguments} arguments)"),
        ("image", asked_for.image),
        ("env", f"{asked_for.env_variables} variables"),
        ("stdin", size_text(asked_for.stdin_bytes)),
        ("attempts", str(asked_for.attempts)),
    ]


def as_json(letter: DeadLetter, asked_for: DeadJob | CorralError) -> bytes:
    """Return one JSON object, with ``job`` or, if that cannot be read, ``job_error``."""
    fields: dict[str, object] = msgspec.to_builtins(letter)
    if isinstance(asked_for, CorralError):
        fields["job_error"] = asked_for.to_data()
    else:
        fields["job"] = asked_for
    return msgspec.json.encode(fields)


def _size(letter: DeadLetter) -> str:
    return size_text(letter.payload_bytes) if letter.payload_bytes else "expired"


def _ask(question: Callable[[DeadLetters], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with operators_redis() as redis:
            return await question(DeadLetters(redis))

    return finish(ask)
