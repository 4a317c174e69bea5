"""Containers in a sandbox that runs, by the command line of a runsc that does what a test says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

import anyio
import pytest

from corral import EffectiveLimits, Job
from corral_worker.process.child import owned_pids
from corral_worker.sandbox.bundle import SandboxSpec, oci_config
from corral_worker.sandbox.commands import RunscContainers
from corral_worker.sandbox.containers import (
    RefusedError,
    SandboxGoneError,
    SandboxLostError,
    Streams,
)
from corral_worker.sandbox.runsc import Runsc

Script = Callable[[str, str], None]
Argv = Callable[[str], list[str]]

ID = "corral-0123abcd-000001"
SOON_S = 20.0
RUNNING = f'printf \'{{"status":"running"}}\' >"$root/${{id}}_sandbox:{ID}.state"\n'
FOR_EVER = "exec sleep 1000\n"


def spec_of(*argv: str) -> SandboxSpec:
    return SandboxSpec(
        job=Job(argv=argv or ("true",)),
        limits=EffectiveLimits(),
        rootfs=PurePosixPath("/images/rootfs.erofs"),
        cgroups_path="/corral/one",
    )


def noting(message: str) -> str:
    """Return the script of a runsc that notes so in its debug log."""
    note = json.dumps({"msg": message, "level": "info"}, separators=(",", ":"))
    return f"cat >>\"$run_log\" <<'END'\n{note}\nEND\n"


def ended(status: int) -> str:
    return noting(f"main.go:222] Exiting with status: {status}")


def failed(message: str) -> str:
    """Return the script of a runsc that says so, and fails."""
    said = json.dumps({"msg": message, "level": "error"})
    return f"cat >>\"$errors\" <<'END'\n{said}\nEND\nexit 128\n"


@asynccontextmanager
async def started(runsc: Runsc, directory: Path, *argv: str) -> AsyncIterator[RunscContainers]:
    """Start a program in a container named job."""
    nothing = subprocess.DEVNULL
    async with RunscContainers(runsc, ID, directory) as containers:
        await containers.create("job", within_s=SOON_S)
        await containers.start(
            "job",
            spec_of(*argv),
            streams=Streams(stdin=nothing, stdout=nothing, stderr=nothing),
            within_s=SOON_S,
        )
        yield containers
    assert owned_pids() == set()


async def test_a_container_is_run_in_the_sandbox_and_has_no_cgroup_of_its_own(
    runsc: Runsc, script: Script, argv: Argv, tmp_path: Path
) -> None:
    script("run", RUNNING + ended(0))
    async with started(runsc, tmp_path) as containers:
        await containers.wait("job", within_s=SOON_S)

    assert argv("run")[-4:] == ["run", "--bundle", str(tmp_path / "job"), "job"]
    assert (tmp_path / "job" / "rootfs").is_dir()
    found = json.loads((tmp_path / "job" / "config.json").read_bytes())
    alone = oci_config(spec_of())
    assert found["process"] == json.loads(json.dumps(alone["process"]))
    assert found["annotations"] == {
        "dev.gvisor.spec.rootfs.source": "/images/rootfs.erofs",
        "dev.gvisor.spec.rootfs.type": "erofs",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": ID,
    }
    assert "cgroupsPath" not in found["linux"]


@pytest.mark.parametrize("status", [0, 9, 256, 137 << 8])
async def test_what_counts_is_the_status_that_runsc_notes_and_not_its_exit_code(
    runsc: Runsc, script: Script, tmp_path: Path, status: int
) -> None:
    script("run", RUNNING + ended(status) + "exit 137\n")

    async with started(runsc, tmp_path) as containers:
        assert await containers.wait("job", within_s=SOON_S) == status


async def test_a_program_may_have_ended_before_it_was_seen_running(
    runsc: Runsc, script: Script, tmp_path: Path
) -> None:
    script("run", ended(256))

    async with started(runsc, tmp_path) as containers:
        assert await containers.wait("job", within_s=SOON_S) == 256


async def test_an_end_that_runsc_says_nothing_of_is_a_loss(
    runsc: Runsc, script: Script, tmp_path: Path
) -> None:
    # Nobody but the main function tells the status, whatever it may quote.
    forged = 'util.go:64] {"msg":"main.go:222] Exiting with status: 0"'
    script("run", RUNNING + noting(forged) + "exit 0\n")

    # It depends on whether it was seen running who finds out.
    with pytest.raises(SandboxLostError) as raised:
        async with started(runsc, tmp_path) as containers:
            await containers.wait("job", within_s=SOON_S)

    assert not isinstance(raised.value, SandboxGoneError)


STARTING = "running container: starting container: starting sub-container "


@pytest.mark.parametrize("argv", [("nope",), ("nope", "a]: urpc method b", "ä\n")])
async def test_a_refusal_is_told_in_the_sandboxs_own_words(
    runsc: Runsc, script: Script, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    words = "creating process: failed to load nope: no such file or directory"
    script("run", failed(f"{STARTING}[{' '.join(argv)}]: {words}"))

    with pytest.raises(RefusedError) as raised:
        async with started(runsc, tmp_path, *argv):
            pass

    assert raised.value.words == words


@pytest.mark.parametrize(
    "said",
    [
        "running container: creating container: cannot load sandbox: file does not exist",
        "reading spec: no such file",
        f"{STARTING}[true]: connecting to control server at PID 7: connection refused",
    ],
)
async def test_what_runsc_could_not_even_ask_for_was_not_started(
    runsc: Runsc, script: Script, tmp_path: Path, said: str
) -> None:
    script("run", failed(said))

    with pytest.raises(SandboxGoneError):
        async with started(runsc, tmp_path):
            pass


@pytest.mark.parametrize(
    "run",
    [
        failed(f'{STARTING}[true]: urpc method "containerManager.StartSubcontainer" failed: EOF'),
        failed(f"{STARTING}[other]: urpc method"),
        failed("running container: starting container: setting oom_score_adj: no such process"),
        "kill -9 $$\n",
        "exit 0\n",
    ],
    ids=["hung up", "of another one", "after the start", "killed", "silent"],
)
async def test_what_may_have_been_started_is_a_loss(
    runsc: Runsc, script: Script, tmp_path: Path, run: str
) -> None:
    script("run", run)

    with pytest.raises(SandboxLostError) as raised:
        async with started(runsc, tmp_path):
            pass

    assert not isinstance(raised.value, SandboxGoneError)


async def test_without_a_runsc_nothing_was_started(runsc: Runsc, tmp_path: Path) -> None:
    gone = Runsc(binary=tmp_path / "none", root=runsc.root, platform="systrap")

    with pytest.raises(SandboxGoneError):
        async with started(gone, tmp_path):
            pass


async def test_every_call_has_its_deadline_and_leaves_no_process(
    runsc: Runsc, script: Script, tmp_path: Path
) -> None:
    nothing = Streams(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=-3)
    script("run", FOR_EVER)
    async with RunscContainers(runsc, ID, tmp_path) as containers:
        await containers.create("job", within_s=SOON_S)
        with pytest.raises(TimeoutError):
            await containers.start("job", spec_of(), streams=nothing, within_s=0.05)
    assert owned_pids() == set()

    script("run", RUNNING + FOR_EVER)
    (tmp_path / "second").mkdir()
    async with started(runsc, tmp_path / "second") as containers:
        with pytest.raises(TimeoutError):
            await containers.wait("job", within_s=0.05)


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.003, 0.01, 0.03, 0.1])
async def test_it_can_be_cancelled_at_any_moment(
    runsc: Runsc, script: Script, tmp_path: Path, delay_s: float
) -> None:
    script("run", RUNNING + FOR_EVER)

    with anyio.move_on_after(delay_s) as scope:
        async with started(runsc, tmp_path) as containers:
            await containers.wait("job", within_s=SOON_S)

    assert scope.cancelled_caught
    assert owned_pids() == set()


async def test_what_runsc_writes_to_a_programs_stderr_at_its_end_is_what_it_logs(
    runsc: Runsc, script: Script, tmp_path: Path
) -> None:
    words = 'running container: urpc method "containerManager.Wait" failed: EOF'
    seen = runsc.root / "fake" / "seen"
    script("run", f"{RUNNING}while [ ! -e {seen} ]; do sleep 0.01; done\n{failed(words)}")
    async with started(runsc, tmp_path) as containers:
        seen.touch()
        with pytest.raises(SandboxLostError):
            await containers.wait("job", within_s=SOON_S)
        assert containers.last_words("job") == words.encode() + b"\n"
        assert containers.last_words("other") == b""


async def test_a_runsc_that_saw_its_programs_end_writes_nothing(
    runsc: Runsc, script: Script, tmp_path: Path
) -> None:
    script("run", RUNNING + ended(0))
    async with started(runsc, tmp_path) as containers:
        await containers.wait("job", within_s=SOON_S)
        assert containers.last_words("job") == b""


async def test_one_that_is_destroyed_lets_go_of_its_process_and_the_others_stay(
    runsc: Runsc, script: Script, tmp_path: Path
) -> None:
    script("run", f'{RUNNING}[ "$id" = job ] && {FOR_EVER}{ended(0)}')
    nothing = Streams(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=-3)
    async with started(runsc, tmp_path) as containers:
        await containers.create("hello", within_s=SOON_S)
        await containers.start("hello", spec_of(), streams=nothing, within_s=SOON_S)
        assert await containers.wait("hello", within_s=SOON_S) == 0
        await containers.destroy("hello", within_s=SOON_S)

        assert len(owned_pids()) == 1
        with pytest.raises(RefusedError):
            await containers.wait("hello", within_s=SOON_S)
