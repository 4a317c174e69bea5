"""``corral worker``."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, get_args

import anyio
import click
import msgspec
from rich.text import Text

from corral import CorralError
from corral_worker import logs
from corral_worker.app import check_host, run_worker
from corral_worker.cli.config_option import config_option
from corral_worker.cli.embedded import EmbeddedRedis, EmbeddedRedisError
from corral_worker.cli.report import error_lines
from corral_worker.cli.signals import ending_like_ctrl_c
from corral_worker.cli.tables import console, table
from corral_worker.settings import Settings, SettingsError, load

_HOST_UNUSABLE = 1
_SETTINGS_WRONG = 2
"""As for wrong options."""
_EPILOG = """\
\b
Settings come from the file, then from the environment, which counts more: CORRAL_ and
the name of the setting in capitals. --check lists them all.
\b
Exit codes: 0 after SIGTERM or SIGINT, once running jobs have ended;
1 this host cannot run jobs; 2 the settings are wrong.
"""


@click.command(epilog=_EPILOG)
@config_option
@click.option("--check", is_flag=True, help="Check the settings and this host, then exit.")
@click.option(
    "--embedded", is_flag=True, help="Start a Valkey of its own unless CORRAL_REDIS_URL is set."
)
def worker(*, config: Path | None, check: bool, embedded: bool) -> None:
    """Run jobs from the queues on this host, until SIGTERM or SIGINT."""
    environ = dict(os.environ)
    with ExitStack() as stack:
        # The worker sees to SIGTERM itself, but only once it has started.
        stack.enter_context(ending_like_ctrl_c())
        if embedded and not environ.get("CORRAL_REDIS_URL"):
            try:
                environ["CORRAL_REDIS_URL"] = stack.enter_context(EmbeddedRedis()).url
            except EmbeddedRedisError as error:
                _fail([str(error)], _HOST_UNUSABLE)
            environ.pop("CORRAL_REDIS_URL_FILE", None)
            click.echo(f"export CORRAL_REDIS_URL={environ['CORRAL_REDIS_URL']}", err=True)
        try:
            settings = load(config, environ)
        except SettingsError as error:
            _fail(str(error).splitlines(), _SETTINGS_WRONG)
        logs.configure(settings.log_format, settings.log_level)
        if check:
            _show(settings)
            _run_or_fail(check_host, settings)
            click.echo("This host can run jobs.")
        else:
            _run_or_fail(run_worker, settings)


def _run_or_fail(work: Callable[[Settings], Awaitable[None]], settings: Settings) -> None:
    refused: list[str] = []
    try:
        anyio.run(work, settings)
    except* CorralError as group:
        # Alone or out of a task group: the same to the operator.
        for error in _leaves(group):
            refused.extend(error_lines(error))
    if refused:
        _fail(refused, _HOST_UNUSABLE)


def _leaves(group: BaseExceptionGroup[CorralError]) -> Iterator[CorralError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _show(settings: Settings) -> None:
    rows = table("setting", "value", "meaning")
    for field in msgspec.structs.fields(Settings):
        notes = [note for note in get_args(field.type) if isinstance(note, msgspec.Meta)]
        meaning = " ".join(note.description or "" for note in notes)
        value: object = msgspec.to_builtins(
            getattr(settings, field.name), enc_hook=str, order="deterministic"
        )
        for path, text in _flat(field.name, value):
            rows.add_row(Text(path), Text(text), Text(meaning))
            meaning = ""
    console().print(rows)


def _flat(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}", inner)
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(str, value)) or "-"
    else:
        yield path, "-" if value is None or value == {} else str(value)


def _fail(lines: Iterable[str], status: int) -> NoReturn:
    for line in lines:
        click.echo(f"corral: {line}", err=True)
    sys.exit(status)
