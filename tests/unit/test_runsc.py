from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from corral_worker.process.output import Pipe, supply
from corral_worker.sandbox.runsc import Platform, Runsc, find, is_old
from corral_worker.sandbox.runsc_errors import (
    RunscError,
    RunscMissingError,
    RunscNotFoundError,
    RunscTimeoutError,
    error_messages,
)
from corral_worker.sandbox.verbs import Delete, Kill, Logs, Run

Script = Callable[[str, str], None]
Argv = Callable[[str], list[str]]

ID = "corral-0123456789abcdef"
SOON_S = 10.0


def flags(runsc: Runsc, platform: Platform = "systrap") -> list[str]:
    return [
        f"--root={runsc.root}",
        f"--platform={platform}",
        "--network=none",
        "--overlay2=none",
        "--directfs=false",
        "--cpu-num-from-quota",
    ]


async def test_kill_signals_every_process_of_the_sandbox(runsc: Runsc, argv: Argv) -> None:
    await runsc.kill(Kill(id=ID), within_s=SOON_S)

    assert argv("kill") == [*flags(runsc), "kill", "--all", ID, "KILL"]


async def test_delete_is_forced(runsc: Runsc, argv: Argv) -> None:
    await runsc.delete(Delete(ids=(ID,)), within_s=SOON_S)

    assert argv("delete") == [*flags(runsc), "delete", "--force", ID]


async def test_run_writes_its_own_messages_to_files_and_never_to_the_jobs_stderr(
    runsc: Runsc, argv: Argv, tmp_path: Path
) -> None:
    notes = os.open(os.devnull, os.O_WRONLY)
    async with runsc.run(
        Run(id=ID, bundle=tmp_path),
        Logs(directory=tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        notes=notes,
    ) as child:
        assert await child.wait() == 0
    os.close(notes)

    assert argv("run") == [
        *flags(runsc),
        f"--log={tmp_path}/runsc.log",
        "--log-format=json",
        f"--panic-log={tmp_path}/panic.log",
        f"--debug-log=/proc/self/fd/{notes}",
        "--debug-log-format=json",
        "--debug-command=run,boot",
        "run",
        "--bundle",
        str(tmp_path),
        ID,
    ]


async def test_the_platform_is_passed_on(runsc: Runsc, argv: Argv) -> None:
    ptrace = Runsc(binary=runsc.binary, root=runsc.root, platform="ptrace")

    await ptrace.kill(Kill(id=ID), within_s=SOON_S)

    assert argv("kill")[:6] == flags(runsc, "ptrace")


async def test_what_is_executed_is_the_copy_and_what_is_watched_the_binary(
    runsc: Runsc, argv: Argv, tmp_path: Path
) -> None:
    binary = tmp_path / "runsc"
    binary.write_text("#!/bin/sh\nexit 3\n")
    binary.chmod(0o755)
    client = Runsc(binary=binary, root=runsc.root, platform="systrap", copy=runsc.binary)
    client.pin()

    await client.kill(Kill(id=ID), within_s=SOON_S)

    assert argv("kill")[:6] == flags(runsc)
    assert client.is_same()
    binary.unlink()
    assert not client.is_same()


async def test_the_version_is_what_stands_behind_the_word(runsc: Runsc) -> None:
    assert await runsc.version(within_s=SOON_S) == "release-20240729.0"


@pytest.mark.parametrize(
    "output",
    [
        "true",
        "echo",
        "echo 'docker version 1'",
        "echo 'runsc version '",
        "head -c 999 /dev/urandom",
    ],
    ids=["nothing", "a blank line", "another program's", "no number", "garbage"],
)
async def test_a_program_that_prints_no_version_is_not_runsc(
    runsc: Runsc, script: Script, output: str
) -> None:
    script("version", output)

    with pytest.raises(RunscError) as raised:
        await runsc.version(within_s=SOON_S)

    assert raised.value.verb == "--version"
    assert str(runsc.binary) in raised.value.detail
    assert len(raised.value.detail) < 2000


async def test_a_call_that_hangs_is_killed_with_all_it_started(
    runsc: Runsc, script: Script, tmp_path: Path
) -> None:
    script("kill", f"trap '' TERM; sleep 1000 & echo $$ $! > {tmp_path}/pids; wait")

    with pytest.raises(RunscTimeoutError, match=r"kill failed .* no answer within 0\.3 s"):
        await runsc.kill(Kill(id=ID), within_s=0.3)

    for pid in (tmp_path / "pids").read_text().split():
        assert await gone(int(pid))


async def gone(pid: int) -> bool:
    """Return whether a process is dead; one whose parent died may be a zombie for a while."""
    with anyio.move_on_after(SOON_S):
        while True:
            try:
                stat = await anyio.Path(f"/proc/{pid}/stat").read_text()
            except FileNotFoundError:
                return True
            if stat.rpartition(")")[2].split()[0] == "Z":
                return True
            await anyio.sleep(0.01)
    return False


async def test_a_slow_answer_is_waited_for(runsc: Runsc, script: Script) -> None:
    script("delete", "sleep 0.3")

    await runsc.delete(Delete(ids=(ID,)), within_s=SOON_S)


async def test_a_cancelled_call_is_killed_at_once(runsc: Runsc, script: Script) -> None:
    script("kill", "sleep 1000")
    began = time.monotonic()

    with anyio.move_on_after(0.2) as scope:
        await runsc.kill(Kill(id=ID), within_s=500)

    assert scope.cancelled_caught
    assert time.monotonic() - began < SOON_S


NOT_FOUND = "echo 'loading sandbox: container \"x\" does not exist' >&2; exit 128"


async def test_a_sandbox_that_is_gone_cannot_be_killed(runsc: Runsc, script: Script) -> None:
    script("kill", NOT_FOUND)

    with pytest.raises(RunscNotFoundError) as raised:
        await runsc.kill(Kill(id=ID), within_s=SOON_S)

    assert (raised.value.verb, raised.value.status) == ("kill", 128)


async def test_to_delete_a_sandbox_that_is_gone_is_no_error(runsc: Runsc, script: Script) -> None:
    script("delete", NOT_FOUND)

    await runsc.delete(Delete(ids=(ID,)), within_s=SOON_S)


async def test_any_other_failure_is_told_with_its_words(runsc: Runsc, script: Script) -> None:
    script("delete", "echo 'cannot signal container in state creating' >&2; exit 3")

    with pytest.raises(RunscError) as raised:
        await runsc.delete(Delete(ids=(ID,)), within_s=SOON_S)

    assert not isinstance(raised.value, RunscNotFoundError)
    assert str(raised.value) == (
        "runsc delete failed (3): cannot signal container in state creating"
    )


async def test_a_call_that_a_signal_ends_says_which(runsc: Runsc, script: Script) -> None:
    script("kill", "kill -9 $$")

    with pytest.raises(RunscError) as raised:
        await runsc.kill(Kill(id=ID), within_s=SOON_S)

    assert raised.value.status == -9


async def test_a_flood_of_complaints_is_kept_in_part(runsc: Runsc, script: Script) -> None:
    script("kill", "echo first >&2; yes | head -c 30000000 >&2; echo last >&2; exit 1")

    with pytest.raises(RunscError) as raised:
        await runsc.kill(Kill(id=ID), within_s=SOON_S)

    assert raised.value.detail.startswith("first\n")
    assert raised.value.detail.endswith("\nlast")
    assert len(raised.value.detail) <= 64 * 1024


async def test_bytes_that_are_no_text_are_no_obstacle(runsc: Runsc, script: Script) -> None:
    script("kill", "printf '\\377\\376 does not exist' >&2; exit 1")

    with pytest.raises(RunscNotFoundError):
        await runsc.kill(Kill(id=ID), within_s=SOON_S)


@pytest.mark.parametrize("mode", [None, 0o644])
async def test_a_runsc_that_cannot_be_executed_is_missing(tmp_path: Path, mode: int | None) -> None:
    binary = tmp_path / "runsc"
    if mode is not None:
        binary.write_text("#!/bin/sh\n")
        binary.chmod(mode)
    client = Runsc(binary=binary, root=tmp_path, platform="systrap")

    with pytest.raises(RunscMissingError, match="cannot be executed"):
        await client.version(within_s=SOON_S)


@pytest.mark.parametrize("step", ["Popen", "wait_readable"])
async def test_a_host_on_which_nothing_can_be_executed_does_not_make_runsc_missing(
    runsc: Runsc, script: Script, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    script("version", "exec sleep 1000")

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(subprocess if step == "Popen" else anyio, step, fails)

    with pytest.raises(RunscError, match="No space left on device") as raised:
        await runsc.version(within_s=SOON_S)

    assert type(raised.value) is RunscError


async def test_runsc_gets_nothing_of_the_workers_environment(
    runsc: Runsc, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("CORRAL_REDIS_URL", "redis://:secret@host")
    script("kill", f"tr '\\0' '\\n' </proc/$$/environ >{tmp_path}/env")

    await runsc.kill(Kill(id=ID), within_s=SOON_S)

    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names == {"PATH"}


TELLS_WHAT_IT_GOT = """
import ctypes, sys
sys.stdin.readline()
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
print(number.value, open("/proc/self/oom_score_adj").read().strip())
"""


async def test_a_sandbox_dies_with_its_worker_and_before_it_if_memory_is_short(
    runsc: Runsc, script: Script, tmp_path: Path
) -> None:
    (tmp_path / "tells").write_text(TELLS_WHAT_IT_GOT)
    script("run", f"exec {sys.executable} {tmp_path}/tells")

    with Pipe(parent="write") as stdin, Pipe(parent="read") as stdout:
        async with runsc.run(
            Run(id=ID, bundle=tmp_path),
            Logs(directory=tmp_path),
            stdin=stdin.theirs,
            stdout=stdout.theirs,
            stderr=subprocess.DEVNULL,
        ) as child:
            await supply(stdin.ours, b"\n")
            assert await child.wait() == 0
        told = os.read(stdout.ours, 100)

    assert told == b"%d 500\n" % signal.SIGKILL


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_runsc_that_cannot_be_executed_runs_nothing(tmp_path: Path, mode: int | None) -> None:
    binary = tmp_path / "runsc"
    if mode is not None:
        binary.write_text("#!/bin/sh\n")
        binary.chmod(mode)
    client = Runsc(binary=binary, root=tmp_path, platform="systrap")

    with pytest.raises(RunscMissingError, match="no executable"):
        client.run(
            Run(id=ID, bundle=tmp_path),
            Logs(directory=tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def test_only_a_sandboxs_own_files_are_forgotten(runsc: Runsc) -> None:
    own = [
        f"{ID}_sandbox:{ID}.lock",
        f"{ID}_sandbox:{ID}.state",
        f"job_sandbox:{ID}.lock",
        f"job_sandbox:{ID}.state",
        f"runsc-{ID}.sock",
    ]
    for name in (*own, "corral-other_sandbox:corral-other.lock"):
        (runsc.root / name).touch()
    assert sorted(file.name for file in runsc.leftovers(ID)) == sorted(own)

    runsc.forget(ID)

    assert runsc.leftovers(ID) == []
    assert (runsc.root / "corral-other_sandbox:corral-other.lock").exists()


def test_nothing_is_left_where_there_is_no_directory(tmp_path: Path) -> None:
    client = Runsc(binary=Path("/nothing"), root=tmp_path / "none", platform="systrap")

    assert client.leftovers(ID) == []


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("release-20240729.0", False),
        ("release-20240728.1", True),
        ("0.0~20221219.0-1", True),
        ("0.0~20240729.0", False),
        ("release-20260801.0", False),
        ("google-583", False),
    ],
)
def test_a_version_is_old_only_if_it_says_so(version: str, *, old: bool) -> None:
    assert is_old(version) is old


def test_the_named_runsc_is_found(tmp_path: Path) -> None:
    binary = tmp_path / "runsc"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)

    assert find(binary) == binary


def test_the_first_runsc_on_the_path_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "runsc"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find(None) == binary


@pytest.mark.parametrize("path", ["", ":", "::/nowhere", "/nowhere:"])
def test_the_current_directory_is_never_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    binary = tmp_path / "runsc"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr("corral_worker.sandbox.runsc.PATH", "/nowhere/else")

    with pytest.raises(RunscMissingError):
        find(None)


def test_a_runsc_that_is_nowhere_is_told_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunscMissingError, match=r"make setup.*CORRAL_RUNSC_PATH"):
        find(tmp_path / "runsc")


def test_only_messages_of_the_log_are_messages() -> None:
    log = b'{"msg":"one","level":"error"}\nno json\n[]\n{"msg":1}\n{}\n\xff\n{"msg":"two"}'

    assert error_messages(log) == ["one", "two"]
