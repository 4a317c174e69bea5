"""Operators' commands, run as a shell would."""

from __future__ import annotations

import json
from functools import partial

from anyio.to_thread import run_sync
from click.testing import CliRunner
from click.testing import Result as Invoked

from corral_worker.cli.root import corral


def invoke_now(*args: str, stdin: bytes = b"") -> Invoked:
    return CliRunner().invoke(corral, args, input=stdin, prog_name="corral")


async def invoke(*args: str) -> Invoked:
    # A command has an event loop of its own.
    return await run_sync(partial(invoke_now, *args))


async def ok(*args: str) -> str:
    invoked = await invoke(*args)
    assert (invoked.exit_code, invoked.stderr) == (0, "")
    return invoked.stdout


async def told(*args: str) -> dict[str, object]:
    shown: dict[str, object] = json.loads(await ok(*args, "--json"))
    return shown


async def refused(*args: str) -> str:
    invoked = await invoke(*args)
    assert (invoked.exit_code, invoked.stdout) == (1, "")
    return invoked.stderr
