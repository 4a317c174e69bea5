"""corral doctor --prove on this very host, and with what it relies on taken away."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from corral import EffectiveLimits, HostLimits, Job
from corral_worker.executor.executor import Runtime
from corral_worker.images.store import ImageStore
from corral_worker.prove.attack import Scene
from corral_worker.prove.campaign import Campaign
from corral_worker.prove.catalog import ATTACKS
from corral_worker.prove.lures import Lures, lures
from corral_worker.prove.prover import Ground, Proof, Prover
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.sandbox.lifecycle import ColdStart
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.stop import Stop

SLOWNESS = float(os.environ.get("CORRAL_TEST_SLOWNESS", "1"))
"""How many times as long as elsewhere things may take here: more than 1 under emulation."""
# It is long, and other tests may run beside it.
pytestmark = [pytest.mark.live, pytest.mark.timeout(1000 * SLOWNESS)]

MIB = 1024**2
Run = Callable[[Job, EffectiveLimits, Path, Stop], Awaitable[Report]]


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corral-") as made:
        yield Path(made)


def test_every_attack_on_this_host_comes_to_nothing(state_dir: Path, python_rootfs: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "corral_worker", "doctor"),
            *("--prove", "--json", "--slowness", str(SLOWNESS)),
        ],
        env={
            **kept,
            "CORRAL_STATE_DIR": str(state_dir),
            "CORRAL_IMAGE_DIR": str(python_rootfs.parents[2]),
            "CORRAL_CGROUP_PARENT": f"/corral-test-{secrets.token_hex(4)}",
            "CORRAL_START_TIMEOUT_S": str(30 * SLOWNESS),
        },
        capture_output=True,
        check=False,
        timeout=900 * SLOWNESS,
    )

    assert done.stderr == b""
    campaign = msgspec.json.decode(done.stdout, type=Campaign)
    assert [(each.name, each.complaints) for each in campaign.attacks if not each.passed] == []
    assert [each.name for each in campaign.attacks] == [each.name for each in ATTACKS]
    assert campaign.left == ()
    assert (campaign.passed, done.returncode) == (True, 0)
    assert list(state_dir.iterdir()) == []


@pytest.fixture
async def out() -> AsyncIterator[Lures]:
    async with lures(slowness=SLOWNESS) as made:
        yield made


class Weakened:
    """Runs sandboxes with less protection than they should have."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def run(self, job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        return await self._run(job, limits, rootfs, stop)


@pytest.fixture
def prove(
    python_rootfs: Path, directory: Path, cgroups: CgroupHost, out: Lures
) -> Callable[..., Awaitable[dict[str, Proof]]]:
    """Make attacks, by name, on sandboxes that are run as a test says."""

    async def prove(run: Run, *names: str) -> dict[str, Proof]:
        ground = Ground(
            images=ImageStore(python_rootfs.parents[2]),
            sandboxes=Weakened(run),
            runtime=Runtime(runsc_version="any", platform="systrap"),
            state_dir=directory,
            cgroup_parent=cgroups.parent,
        )
        attacks = [attack for attack in ATTACKS if attack.name in names]
        proofs = await Prover(ground, out, at_once=3).prove(attacks)
        return {each.name: each for each in proofs}

    return prove


Prove = Callable[..., Awaitable[dict[str, Proof]]]


def complaints(proof: Proof) -> str:
    return "\n".join(proof.complaints)


async def test_an_attack_fails_where_the_kernel_refuses_nothing(
    prove: Prove, sandboxes: ColdStart
) -> None:
    permissive = "\ndef attempt(name, act):\n    succeeded[name] = 'done'\n"

    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        python, option, start, attempts, *rest = job.argv
        argv = (python, option, start, attempts + permissive, *rest)
        return await sandboxes.run(structs.replace(job, argv=argv), limits, rootfs, stop)

    names = (
        *("links_and_dots", "host_files", "host_processes", "ptrace", "proc_and_sys", "mounts"),
        *("network_and_metadata", "host_services", "privileges", "bpf", "perf", "raw_sockets"),
        *("kvm_and_devices", "kernel_calls", "clock"),
    )
    proofs = await prove(run, *names)

    assert len(proofs) == len(names)
    for proof in proofs.values():
        assert "it could" in complaints(proof), proof.name


async def test_root_in_a_sandbox_is_found(prove: Prove, sandboxes: ColdStart) -> None:
    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        return await sandboxes.run(structs.replace(job, user="0"), limits, rootfs, stop)

    proofs = await prove(run, "privileges", "host_files", "proc_and_sys")

    assert "it could become root" in complaints(proofs["privileges"])
    assert "it could read the host's passwords" in complaints(proofs["host_files"])


async def test_looser_limits_than_were_asked_for_are_found(
    prove: Prove, sandboxes: ColdStart
) -> None:
    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        loose = structs.replace(
            limits,
            memory_bytes=limits.memory_bytes + 32 * MIB,
            pids=2 * limits.pids,
            disk_bytes=2 * limits.disk_bytes,
            output_bytes=2 * limits.output_bytes,
        )
        return await sandboxes.run(job, loose, rootfs, stop)

    proofs = await prove(run, "fork_bomb", "memory_anonymous", "disk_fill", "output_flood")

    for proof in proofs.values():
        assert "asked for were" in complaints(proof), proof.name
    assert "bytes of memory of 67108864" in complaints(proofs["memory_anonymous"])
    assert "it wrote 33554432 bytes" in complaints(proofs["disk_fill"])
    assert "bytes of stdout were kept" in complaints(proofs["output_flood"])


async def test_an_environment_that_is_passed_on_is_found(
    prove: Prove, sandboxes: ColdStart
) -> None:
    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        env = {**job.env, "HOST_LURE": os.environ["HOST_LURE"]}
        return await sandboxes.run(structs.replace(job, env=env), limits, rootfs, stop)

    (proof,) = (await prove(run, "host_environment")).values()

    assert "a secret of the host is in its output" in complaints(proof)
    assert "variables" in complaints(proof)


async def test_lures_that_are_touched_are_found(
    prove: Prove, sandboxes: ColdStart, out: Lures
) -> None:
    scene = out.scene

    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        touch(scene)
        return await sandboxes.run(job, limits, rootfs, stop)

    (proof,) = (await prove(run, "host_services")).values()

    said = complaints(proof)
    assert said.count("was reached") == 4
    assert "files of the host were changed" in said
    assert "a process of the host was killed" in said


async def test_whatever_is_put_among_the_lures_is_neither_followed_nor_read_to_its_end(
    out: Lures,
) -> None:
    clutter(Path(out.scene.directory))

    assert out.harm() == ("files of the host were changed",)


def clutter(directory: Path) -> None:
    """Put there what any user of the host could."""
    large = directory / "large"
    large.touch()
    os.truncate(large, 2**40)
    (directory / "link").symlink_to(large)


def touch(scene: Scene) -> None:
    """Do to the host what a program that came out could do."""
    with ExitStack() as stack:
        tcp, udp, abstract, unix = (
            stack.enter_context(socket.socket(family, kind))
            for family, kind in (
                (socket.AF_INET, socket.SOCK_STREAM),
                (socket.AF_INET, socket.SOCK_DGRAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
            )
        )
        tcp.connect(("127.0.0.1", scene.port))
        udp.sendto(b"hello", ("127.0.0.1", scene.port))
        abstract.connect(f"\0{scene.abstract}")
        unix.connect(f"{scene.directory}/socket")
    Path(scene.directory, "secret").write_text("changed")
    os.kill(scene.process, signal.SIGKILL)


HOLDS_LURES = """
import anyio
from corral_worker.prove.lures import lures

async def hold():
    async with lures(slowness=1.0) as out:
        print(out.scene.process, flush=True)
        await anyio.sleep_forever()

anyio.run(hold)
"""


def test_no_process_is_left_of_a_prover_that_is_killed(tmp_path: Path) -> None:
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_LURES], env=environ, stdout=subprocess.PIPE
    ) as prover:
        assert prover.stdout is not None
        pid = prover.stdout.readline()
        lure = os.pidfd_open(int(pid))
        prover.kill()

    ended, _, _ = select.select([lure], [], [], 30)

    os.close(lure)
    assert ended


async def test_what_is_left_of_a_sandbox_is_found(
    prove: Prove, sandboxes: ColdStart, directory: Path, cgroups: CgroupHost
) -> None:
    with ExitStack() as stack:

        async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
            report = await sandboxes.run(job, limits, rootfs, stop)
            leave(report.sandbox, stack, directory, cgroups)
            return report

        (proof,) = (await prove(run, "survivors")).values()

    said = complaints(proof)
    assert "left on the host: process" in said
    assert "left on the host: file" in said
    assert "left on the host: cgroup" in said


def leave(sandbox: str, stack: ExitStack, directory: Path, cgroups: CgroupHost) -> None:
    """Leave a process, a bundle and a cgroup of a sandbox on the host, as long as the block."""
    process = stack.enter_context(
        subprocess.Popen(["/bin/sh", "-c", "read line", sandbox], stdin=subprocess.PIPE)
    )
    stack.callback(process.kill)
    bundle = directory / "b" / sandbox
    bundle.mkdir()
    stack.callback(bundle.rmdir)
    cgroup = cgroups.sandbox(sandbox)
    cgroup.create(HostLimits(memory_bytes=64 * MIB, swap_bytes=0, cpus=1.0, tasks=16))
    stack.callback(cgroup.remove)


async def test_an_innocent_job_that_suffers_is_found(prove: Prove, sandboxes: ColdStart) -> None:
    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        innocent = "An innocent job" in job.argv[-1]
        changed = structs.replace(job, argv=("/bin/false",)) if innocent else job
        return await sandboxes.run(changed, limits, rootfs, stop)

    (proof,) = (await prove(run, "memory_anonymous")).values()

    assert proof.complaints == ("an innocent job beside it ended as exited with b''",)


async def test_a_worker_that_keeps_what_it_is_flooded_with_is_found(
    prove: Prove, sandboxes: ColdStart
) -> None:
    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        hoard = b"x" * (100 * MIB)
        report = await sandboxes.run(job, limits, rootfs, stop)
        assert hoard
        return report

    (proof,) = (await prove(run, "output_flood")).values()

    assert "the worker grew by" in complaints(proof)


async def test_a_limit_of_output_that_does_not_kill_is_found(
    prove: Prove, sandboxes: ColdStart
) -> None:
    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        endless = structs.replace(limits, output_kill_bytes=2**40, wall_s=1.0)
        return await sandboxes.run(job, endless, rootfs, stop)

    (proof,) = (await prove(run, "output_without_end")).values()

    assert "not output_exceeded but wall_timeout" in complaints(proof)


async def test_a_death_that_was_not_seen_is_found(prove: Prove, sandboxes: ColdStart) -> None:
    async def run(job: Job, limits: EffectiveLimits, rootfs: Path, stop: Stop) -> Report:
        report = await sandboxes.run(job, limits, rootfs, stop)
        assert report.termination is not None
        unseen = structs.replace(report.termination, verified_dead=False)
        return structs.replace(report, termination=unseen)

    (proof,) = (await prove(run, "ignores_signals")).values()

    assert proof.complaints == ("it was not seen dead",)
