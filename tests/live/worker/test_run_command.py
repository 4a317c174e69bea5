"""``corral run`` with a worker behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import anyio
import anyio.to_thread
import pytest
from support.workers import RunningWorker

pytestmark = pytest.mark.live


@pytest.mark.parametrize(
    ("options", "program", "code", "out"),
    [
        ((), ("sh", "-c", "echo $((6*7))"), 0, b"42\n"),
        ((), ("sh", "-c", "exit 7"), 7, b""),
        (("--env", "A=b c"), ("sh", "-c", 'echo "$A"'), 0, b"b c\n"),
        (("--stdin", "-"), ("cat",), 0, b"from stdin"),
        (("--timeout", "1"), ("sh", "-c", "echo started; sleep 60"), 124, b"started\n"),
        (("--image", "nope"), ("true",), 125, b""),
        ((), ("nope",), 127, b""),
        (("--user", "0"), ("true",), 125, b""),
    ],
)
async def test_the_run_command_is_like_the_program_itself(
    environ: dict[str, str],
    worker: RunningWorker,
    options: tuple[str, ...],
    program: tuple[str, ...],
    code: int,
    out: bytes,
) -> None:
    done = await _corral_run(environ, *options, "--", *program)

    assert (code, out) == (done.returncode, done.stdout)


async def test_the_run_command_prints_the_whole_result_as_json(
    environ: dict[str, str], worker: RunningWorker
) -> None:
    done = await _corral_run(
        environ, "--json", "--timeout", "1", "--", "sh", "-c", "echo started; sleep 60"
    )
    result = json.loads(done.stdout)

    assert (result["outcome"], result["stdout"]) == ("wall_timeout", "started\n")
    assert result["termination"]["verified_dead"]


async def _corral_run(
    environ: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    image = () if "--image" in arguments else ("--image", "base")
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "corral_worker", "run", *image, *arguments],
            env={"PATH": environ["PATH"], "CORRAL_REDIS_URL": environ["CORRAL_REDIS_URL"]},
            input=b"from stdin",
            capture_output=True,
            check=False,
            timeout=50,
        )
    )
