"""``corral run``."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO, NoReturn, TypedDict, Unpack

import anyio
import click

from corral import CorralError, ErrClientNotConfigured, ErrInvalidJob, Job, Limits
from corral.client import REDIS_URL_VARIABLE
from corral.job import MAX_STDIN_BYTES
from corral_worker.cli import report
from corral_worker.cli.foreground import Ended, run_in_foreground
from corral_worker.cli.units import byte_size, key_value

_DEFAULTS = Job(argv=("true",))
_NOT_CONFIGURED = """\
no Redis is configured: set CORRAL_REDIS_URL. To start one, and a worker:
  redis-server
  export CORRAL_REDIS_URL=redis://127.0.0.1:6379/0
  corral worker
or both at once, which prints the URL to export:
  corral worker --embedded"""


class _Options(TypedDict):
    argv: tuple[str, ...]
    image: str
    tenant: str
    timeout: float | None
    memory: int | None
    cpus: float | None
    stdin: BinaryIO | None
    env: tuple[tuple[str, str], ...]
    user: str
    cwd: str
    json: bool
    wait_timeout: float | None


class _RunCommand(click.Command):
    """Leaves the exit code 2 to the program that is run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.show()
            ctx.exit(report.FAILED)


@click.command(
    cls=_RunCommand,
    epilog=report.EXIT_CODES,
    context_settings={"allow_interspersed_args": False},
)
@click.option("--image", default=_DEFAULTS.image, show_default=True, help="Image to run in.")
@click.option("--tenant", default="default", show_default=True, help="Whose queue it goes to.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Kill it after this time.")
@click.option(
    "--memory", type=byte_size, metavar="SIZE", help="Most memory it may use, such as 64M or 1G."
)
@click.option("--cpus", type=float, help="Processor share: 0.5 is half a core.")
@click.option(
    "--stdin",
    type=click.File("rb"),
    metavar="FILE",
    help="File to give as its standard input; - is the one of this command.  [default: nothing]",
)
@click.option(
    "--env",
    type=key_value,
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable for it; may be repeated.",
)
@click.option("--user", default=_DEFAULTS.user, show_default=True, help="UID or UID:GID.")
@click.option("--cwd", default=_DEFAULTS.cwd, show_default=True, help="Directory to start in.")
@click.option("--json", is_flag=True, help="Print the whole result as one JSON object.")
@click.option(
    "--wait-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Cancel it if it has not ended by then, the time in the queue included.",
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM ...")
def run(**options: Unpack[_Options]) -> None:
    """Run one program in a sandbox, with its output as ours and its exit code.

    It goes through the queue of the Redis that CORRAL_REDIS_URL names, to
    whichever worker is free. Ctrl-C cancels it.
    """
    if not os.environ.get(REDIS_URL_VARIABLE):
        _fail(ErrClientNotConfigured(_NOT_CONFIGURED), as_json=options["json"])
    try:
        job = _job(options)
    except CorralError as error:
        _fail(error, as_json=options["json"])
    except KeyboardInterrupt:
        sys.exit(130)
    ended = anyio.run(_run, job, options["tenant"], options["wait_timeout"])
    _show(ended, as_json=options["json"])
    sys.exit(_exit_code(ended))


async def _run(job: Job, tenant: str, patience_s: float | None) -> Ended:
    return await run_in_foreground(job, tenant=tenant, patience_s=patience_s, say=_say)


def _job(options: _Options) -> Job:
    stdin = options["stdin"]
    try:
        data = b"" if stdin is None else stdin.read(MAX_STDIN_BYTES + 1)
    except OSError as error:
        raise ErrInvalidJob(f"--stdin cannot be read: {error.strerror}", path="$.stdin") from error
    return Job(
        argv=options["argv"],
        image=options["image"],
        env=dict(options["env"]),
        cwd=options["cwd"],
        stdin=data,
        user=options["user"],
        limits=Limits(
            wall_s=options["timeout"], memory_bytes=options["memory"], cpus=options["cpus"]
        ),
    )


def _show(ended: Ended, *, as_json: bool) -> None:
    ending = ended.ending
    stdout = sys.stdout.buffer
    stderr = sys.stderr.buffer
    midline = False
    if as_json:
        stdout.write(report.as_json(ended.job_id, ending) + b"\n")
    elif not isinstance(ending, CorralError):
        stdout.write(ending.stdout)
        stderr.write(ending.stderr)
        midline = ending.stderr[-1:] not in {b"", b"\n"}
    stdout.flush()
    stderr.flush()
    for line in report.lines(ending):
        if midline:
            stderr.write(b"\n")
            stderr.flush()
            midline = False
        _say(line)


def _exit_code(ended: Ended) -> int:
    match ended.given_up:
        case None:
            return report.exit_code(ended.ending)
        case "timeout":
            return report.TIMED_OUT
        case number:
            return 128 + number


def _fail(error: CorralError, *, as_json: bool) -> NoReturn:
    _show(Ended(job_id=None, ending=error), as_json=as_json)
    sys.exit(report.exit_code(error))


def _say(line: str) -> None:
    click.echo(f"corral: {line}", err=True)
