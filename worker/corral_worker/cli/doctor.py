"""``corral doctor``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, TypedDict, Unpack

import anyio
import click
import msgspec
from rich.text import Text

from corral import CorralError
from corral_worker import logs
from corral_worker.cli import proving
from corral_worker.cli.asking import fail
from corral_worker.cli.config_option import config_option
from corral_worker.cli.tables import console, table
from corral_worker.cli.text import printable
from corral_worker.doctor.check import Examined, examine
from corral_worker.doctor.checkup import checks
from corral_worker.doctor.configuration import Configuration, read_configuration
from corral_worker.doctor.finding import Finding, Status
from corral_worker.prove.attack import MOST_SLOWNESS

_STYLES: Mapping[Status, str] = MappingProxyType(
    {"ok": "green", "warn": "yellow", "fail": "bold red"}
)
_FAILED = 1
_EPILOG = """\
\b
Exit codes: 0 nothing failed; 1 something did, or was a warning under --strict,
or an attack came to something; 2 wrong options.
"""


class _Options(TypedDict):
    config: Path | None
    strict: bool
    json: bool
    prove: bool
    only: tuple[str, ...]
    slowness: float


@click.command(epilog=_EPILOG)
@config_option
@click.option("--strict", is_flag=True, help="Let warnings count as failures.")
@click.option("--json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--prove", is_flag=True, help="Attack this host from sandboxes, and tell what came of it."
)
@click.option(
    "--only", multiple=True, metavar="NAME", help="With --prove: this attack; may be repeated."
)
@click.option(
    "--slowness",
    type=click.FloatRange(min=1, max=MOST_SLOWNESS),
    default=1.0,
    metavar="FACTOR",
    help="With --prove: how many times slower this machine is than a usual one. It gets more time"
    " and less to do.",
)
def doctor(**options: Unpack[_Options]) -> None:
    """Check whether this host can run jobs as it should, and say what to mend.

    Looks at the machine, gVisor, cgroups and their limits, images, settings and
    Redis; boots a sandbox; leaves nothing behind. Needs neither settings nor
    Redis, and says so if they are missing.

    With --prove it runs programs in real sandboxes that try to take more than
    their share, to outlive their end and to get out, and tells of each what
    came of it. Needs the image python.
    """
    logs.configure("auto", "error")
    if not options["prove"] and options["only"]:
        raise click.UsageError("--only is for --prove")
    configuration = read_configuration(options["config"], os.environ)
    if options["prove"]:
        _prove(configuration, options)
    else:
        _check(configuration, options)


def _prove(configuration: Configuration, options: _Options) -> NoReturn:
    attacks = proving.chosen(options["only"])
    for finding in configuration.findings:
        if finding.status == "fail":
            # With other settings than the worker's, nothing would be proved of it.
            fail(CorralError(finding.seen))
    try:
        campaign = proving.prove(configuration.settings, attacks, slowness=options["slowness"])
    except CorralError as error:
        fail(error)
    except OSError as error:
        fail(CorralError(f"what attacks are to find on this host cannot be set out: {error}"))
    if options["json"]:
        click.echo(proving.as_json(campaign))
    else:
        proving.show(campaign)
    sys.exit(0 if campaign.passed else _FAILED)


def _check(configuration: Configuration, options: _Options) -> NoReturn:
    strict, json = options["strict"], options["json"]
    examined = anyio.run(examine, checks(configuration))
    passed = is_passed(examined.findings, strict=strict)
    if json:
        click.echo(as_json(examined.findings, passed=passed))
    else:
        _print(examined.findings)
    _exit(examined, 0 if passed else _FAILED)


def is_passed(findings: tuple[Finding, ...], *, strict: bool) -> bool:
    """Return whether a worker may be started here, by what was found."""
    bad = {"fail", "warn"} if strict else {"fail"}
    return not any(finding.status in bad for finding in findings)


def as_json(findings: tuple[Finding, ...], *, passed: bool) -> bytes:
    """Return one JSON object; fields may be added to it, and never change their meaning."""
    return msgspec.json.encode({"passed": passed, "findings": findings})


def summary(findings: tuple[Finding, ...]) -> str:
    """Return how many findings there are of each kind."""
    counted = Counter(finding.status for finding in findings)
    return f"{counted['ok']} ok, {counted['warn']} warnings, {counted['fail']} failures"


def _print(findings: tuple[Finding, ...]) -> None:
    rows = table("check", "", "seen")
    for finding in findings:
        status = Text(finding.status, _STYLES[finding.status])
        rows.add_row(finding.name, status, Text(printable(finding.seen)))
    screen = console()
    screen.print(rows)
    screen.print()
    for finding in findings:
        if finding.remedy:
            screen.print(Text(printable(f"{finding.name}: {finding.remedy}")))
    screen.print(Text(summary(findings)))


def _exit(examined: Examined, status: int) -> NoReturn:
    if examined.overdue:
        # A thread that the kernel does not let go would keep the interpreter for ever.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
