"""External tools neither hang nor outlive the build, and their failures explain themselves."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from corral_worker.images.errors import ImageBuildError
from corral_worker.images.tool import Tool

SHELL = Tool("sh", package="dash")
# Holds a named pipe open for as long as the tool or its child lives.
FAMILY = 'exec 9>"$0"; (sleep 600) & echo started >&9; sleep 600'

RUNS_TOOL = """
import os
import anyio
from corral_worker.images.tool import Tool

SAYS_ITS_PID = f"echo $$ > /proc/{os.getpid()}/fd/1; exec sleep 600"
anyio.run(lambda: Tool("sh", package="dash").run("-c", SAYS_ITS_PID, deadline_s=600))
"""


@pytest.fixture
def alive(tmp_path: Path) -> Path:
    path = tmp_path / "alive"
    os.mkfifo(path)
    return path


async def wait_for_the_end_of(alive: Path, started: anyio.Event) -> None:
    async with await anyio.open_file(alive, "rb") as pipe:
        assert await pipe.readline() == b"started\n"
        started.set()
        with anyio.fail_after(10):
            assert await pipe.read() == b""


async def test_standard_output_is_returned() -> None:
    assert await SHELL.run("-c", "echo out; echo err >&2", deadline_s=10) == "out\n"


async def test_a_failure_says_the_tool_its_code_and_its_last_lines() -> None:
    with pytest.raises(ImageBuildError) as caught:
        await SHELL.run("-c", "seq 100000 >&2; echo why >&2; exit 3", deadline_s=10)

    message = str(caught.value)
    assert "sh failed with exit code 3" in message
    assert message.endswith("100000\nwhy")
    assert len(message.splitlines()) < 20


async def test_a_missing_tool_names_its_debian_package() -> None:
    with pytest.raises(ImageBuildError, match="install the Debian package erofs-utils"):
        await Tool("mkfs.no-such", package="erofs-utils").run(deadline_s=10)


async def test_unbounded_output_is_an_error_not_memory() -> None:
    with pytest.raises(ImageBuildError, match="printed more than"):
        await SHELL.run("-c", "head -c 20000000 /dev/zero", deadline_s=10)


async def test_a_tool_over_its_deadline_is_killed_with_its_children(alive: Path) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_the_end_of, alive, anyio.Event())
        with pytest.raises(ImageBuildError, match=r"not done after 0\.5 s"):
            await SHELL.run("-c", FAMILY, str(alive), deadline_s=0.5)


async def test_a_cancelled_tool_is_killed_with_its_children(alive: Path) -> None:
    started = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_the_end_of, alive, started)
        with anyio.CancelScope() as scope:

            async def cancel() -> None:
                await started.wait()
                scope.cancel()

            tasks.start_soon(cancel)
            await SHELL.run("-c", FAMILY, str(alive), deadline_s=60)

    assert scope.cancelled_caught


def test_a_tool_dies_with_a_killed_worker() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", RUNS_TOOL],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    try:
        # What the tool is told to print comes when it runs.
        tool = os.pidfd_open(int(worker.stdout.readline()))
        worker.kill()
        assert select.select([tool], [], [], 10)[0] == [tool]
        os.close(tool)
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


async def test_a_tool_sees_nothing_of_the_workers_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CORRAL_REDIS_URL", "secret")

    assert "secret" not in await Tool("env", package="coreutils").run(deadline_s=10)
