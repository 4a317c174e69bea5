"""``corral doctor``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import NoReturn

import anyio
import click
import msgspec
from rich.text import Text

from corral_worker import logs
from corral_worker.cli.tables import console, table
from corral_worker.cli.text import printable
from corral_worker.doctor.check import Examined, examine
from corral_worker.doctor.checkup import checks
from corral_worker.doctor.configuration import read_configuration
from corral_worker.doctor.finding import Finding, Status

_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_EPILOG = """\
\b
Exit codes: 0 nothing failed; 1 something did, or was a warning under --strict;
2 wrong options.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The worker's TOML file.  [default: CORRAL_CONFIG, else /etc/corral/worker.toml]",
)
@click.option("--strict", is_flag=True, help="Let warnings count as failures.")
@click.option("--json", is_flag=True, help="Print one JSON object.")
def doctor(*, config: Path | None, strict: bool, json: bool) -> None:
    """Check whether this host can run jobs as it should, and say what to mend.

    Looks at the machine, gVisor, cgroups and their limits, images, settings and
    Redis; boots a sandbox; leaves nothing behind. Needs neither settings nor
    Redis, and says so if they are missing.
    """
    logs.configure("auto", "error")
    configuration = read_configuration(config, os.environ)
    examined = anyio.run(examine, checks(configuration))
    passed = is_passed(examined.findings, strict=strict)
    if json:
        click.echo(as_json(examined.findings, passed=passed))
    else:
        _print(examined.findings)
    _exit(examined, 0 if passed else 1)


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
