from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from corral_worker.process.identity import ProcessIdentity, boot_id

NAMED_TO_CONFUSE = "x) R 1 1 ("


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a name that looks like the fields behind it."""
    program = f"""
import pathlib, signal
pathlib.Path("/proc/self/comm").write_text({NAMED_TO_CONFUSE!r})
print(flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def identity(pid: int) -> ProcessIdentity:
    found = ProcessIdentity.of(pid)
    assert found is not None
    return found


def test_a_process_is_itself_whatever_it_is_called(child: subprocess.Popen[bytes]) -> None:
    assert identity(child.pid) == identity(child.pid)
    assert identity(child.pid).is_alive()
    assert identity(child.pid).started >= identity(os.getpid()).started


def test_one_that_has_ended_is_not_alive_even_before_it_is_reaped(
    child: subprocess.Popen[bytes],
) -> None:
    found = identity(child.pid)

    found.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not found.is_alive()
    assert ProcessIdentity.of(child.pid) is None
    assert child.wait() == -signal.SIGKILL
    assert not found.is_alive()
    found.kill()  # gone already


def test_another_process_with_the_number_is_not_killed(child: subprocess.Popen[bytes]) -> None:
    found = identity(child.pid)
    earlier = msgspec.structs.replace(found, started=found.started - 1)

    assert not earlier.is_alive()
    earlier.kill()

    assert found.is_alive()


def test_a_number_that_nobody_has_is_no_process() -> None:
    assert ProcessIdentity.of(2**22 + 1) is None


def test_the_boot_has_a_name() -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36
