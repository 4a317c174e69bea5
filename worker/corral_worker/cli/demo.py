"""``corral demo``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial

import anyio
import click
from rich.text import Text

from corral import Client, CorralError, ErrSecurityViolation, Result
from corral_worker import logs
from corral_worker.app import check_host
from corral_worker.cli.demo_jobs import SHOWS, Shown, play
from corral_worker.cli.demo_worker import WorkerFailed, beside_worker
from corral_worker.cli.embedded import EmbeddedRedis, EmbeddedRedisError
from corral_worker.cli.report import error_lines
from corral_worker.cli.signals import ending_like_ctrl_c
from corral_worker.cli.tables import console, table
from corral_worker.cli.units import size_text
from corral_worker.images.builder import ImageBuilder, default_recipes
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.store import ImageStore
from corral_worker.settings import Settings, SettingsError, load

_OUTPUT_SHOWN = 24
_STOP_WITHIN_S = 20.0


@click.command()
def demo() -> None:
    """Show it all: a worker, and jobs that end in different ways.

    Builds the default images if they are missing, starts a worker (and a Valkey
    of its own unless CORRAL_REDIS_URL is set), submits jobs, shows how each
    ended, and stops it all. Exits with 1 if any did not end as it should.
    """
    environ = dict(os.environ)
    try:
        with ExitStack() as stack:
            stack.enter_context(ending_like_ctrl_c())
            if not (environ.get("CORRAL_REDIS_URL") or environ.get("CORRAL_REDIS_URL_FILE")):
                environ["CORRAL_REDIS_URL"] = stack.enter_context(EmbeddedRedis()).url
                _tell("started an embedded Valkey")
            settings = load(None, environ)
            logs.configure(settings.log_format, "error")
            shown = anyio.run(_perform, settings, environ)
    except (EmbeddedRedisError, ImageBuildError, SettingsError, WorkerFailed) as error:
        raise click.ClickException(str(error)) from error
    except CorralError as error:
        raise click.ClickException("\n".join(error_lines(error))) from error
    _print(shown)
    sys.exit(0 if all(one.as_expected for one in shown) else 1)


async def _perform(settings: Settings, environ: dict[str, str]) -> list[Shown]:
    # First, for a host without images is one that no worker starts on.
    await _make_images(ImageStore(settings.images))
    await check_host(settings)
    async with Client(settings.redis_url.reveal()) as client:
        _tell(f"starting a worker, submitting {len(SHOWS)} jobs")
        return await beside_worker(
            partial(_play_all, client),
            # Jobs run on only if somebody stops the demo: they need no grace.
            environ=environ | {"CORRAL_DRAIN_GRACE_S": "0"},
            stop_within_s=_STOP_WITHIN_S,
        )


async def _make_images(store: ImageStore) -> None:
    present = {image.name for image in await store.list()}
    for name, recipe in default_recipes().items():
        if name not in present:
            _tell(f"building the image {name} from {recipe.source}: once, in up to a minute")
            image = await ImageBuilder(store).build(recipe, name=name)
            _tell(f"built {name}, {size_text(image.size_bytes)}")


async def _play_all(client: Client) -> list[Shown]:
    shown: dict[int, Shown] = {}

    async def one(index: int) -> None:
        shown[index] = await play(SHOWS[index], client)

    async with anyio.create_task_group() as tasks:
        for index in range(len(SHOWS)):
            tasks.start_soon(one, index)
    return [shown[index] for index in range(len(SHOWS))]


def _print(shown: list[Shown]) -> None:
    rows = table("job", "ending", "exit", "output", "duration", "cpu", "peak memory", "")
    for one in shown:
        mark = Text("ok", "green") if one.as_expected else Text("NOT AS EXPECTED", "bold red")
        rows.add_row(Text(one.show.title), *_cells(one.ending), mark)
    screen = console()
    screen.print(rows)
    screen.print()
    for one in shown:
        if isinstance(one.ending, ErrSecurityViolation):
            screen.print(Text(f"{one.show.title}: refused, nothing was started, because"))
            for violation in one.ending.violations:
                screen.print(Text(f"  {violation}"))
        elif isinstance(one.ending, CorralError):
            screen.print(Text(f"{one.show.title}: {one.ending.code}: {one.ending.message}"))


def _cells(ending: Result | CorralError) -> tuple[Text, Text, Text, Text, Text, Text]:
    if isinstance(ending, CorralError):
        return (Text(ending.code, "yellow"), *(Text("-"),) * 5)
    usage = ending.usage
    return (
        Text(ending.outcome, "cyan"),
        Text("-" if ending.exit_code is None else str(ending.exit_code)),
        Text(_shortened(ending.stdout or ending.stderr)),
        Text(f"{ending.duration_s:.2f} s"),
        Text("-" if usage is None else f"{usage.cpu_s:.2f} s"),
        Text("-" if usage is None else size_text(usage.peak_memory_bytes)),
    )


def _shortened(output: bytes) -> str:
    text = output.decode(errors="replace").strip().replace("\n", " ")
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable if len(printable) <= _OUTPUT_SHOWN else f"{printable[:_OUTPUT_SHOWN]}..."


def _tell(line: str) -> None:
    click.echo(f"corral demo: {line}", err=True)
