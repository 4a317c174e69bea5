"""Each attack's verdict can come out either way, and says why."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner
from msgspec import structs

from corral import (
    CorralError,
    EffectiveLimits,
    ErrInvalidJob,
    ErrProgramNotFound,
    ErrSandboxExecutionFailed,
    HostLimits,
    Outcome,
    Policy,
    Result,
    Termination,
    Usage,
)
from corral_worker.cli import proving
from corral_worker.cli.root import corral
from corral_worker.prove.attack import MOST_SLOWNESS, Attack, Observed, Scene
from corral_worker.prove.campaign import Campaign
from corral_worker.prove.catalog import ATTACKS
from corral_worker.prove.prover import proof
from corral_worker.sandbox.bundle import host_tasks

MIB = 1024**2
SCENE = Scene(
    secret="5ec3e7",
    variable="HOST_LURE",
    directory="/tmp/corral-lure-1",
    port=4711,
    abstract="corral-lure-1",
    process=4712,
)
ASKED = EffectiveLimits(memory_bytes=64 * MIB, pids=32, cpus=1.0, output_bytes=256 * 1024)
HELD = HostLimits(memory_bytes=64 * MIB, swap_bytes=0, cpus=1.0, tasks=host_tasks(ASKED))
USED = Usage(cpu_s=0.1, peak_memory_bytes=64 * MIB, peak_tasks=90)
KILLED = Termination(
    cause=Outcome.WALL_TIMEOUT,
    requested_by="limit",
    steps=("runsc_kill",),
    verified_dead=True,
    latency_s=0.2,
)
NEIGHBOUR = Result(outcome=Outcome.EXITED, exit_code=0, stdout=b"333283335000\n")
DONE = Result(
    outcome=Outcome.EXITED,
    exit_code=0,
    limits=ASKED,
    host_limits=HELD,
    usage=USED,
    duration_s=1.0,
)


def ended(
    outcome: Outcome = Outcome.EXITED, exit_code: int | None = None, stdout: bytes = b""
) -> Result:
    return structs.replace(DONE, outcome=outcome, exit_code=exit_code, stdout=stdout)


def refusing(tries: int, **facts: int) -> Result:
    return telling({f"try {number}": "EPERM" for number in range(tries)}, {}, **facts)


def telling(refused: dict[str, str], succeeded: dict[str, str], **facts: int) -> Result:
    said = {"refused": refused, "succeeded": succeeded, "facts": facts}
    return ended(exit_code=0, stdout=json.dumps(said).encode() + b"\n")


def killed(outcome: Outcome) -> Result:
    return structs.replace(ended(outcome), termination=structs.replace(KILLED, cause=outcome))


TIMED_OUT = killed(Outcome.WALL_TIMEOUT)
# How each attack ends where it comes to nothing.
GOOD: dict[str, Result | CorralError] = {
    "fork_bomb": ended(Outcome.PIDS_EXCEEDED),
    "thread_bomb": structs.replace(TIMED_OUT, stdout=b"50\n100\n"),
    "memory_anonymous": ended(Outcome.OUT_OF_MEMORY),
    "memory_tmpfs": ended(Outcome.OUT_OF_MEMORY),
    "memory_page_cache": refusing(0, read=96 * MIB),
    "disk_fill": refusing(0, written=16 * MIB, no_space=1),
    "disk_in_sum": killed(Outcome.DISK_EXCEEDED),
    "disk_of_its_own": killed(Outcome.DISK_EXCEEDED),
    "inode_fill": ended(Outcome.OUT_OF_MEMORY, stdout=b"1000\n"),
    "output_flood": structs.replace(DONE, stdout_bytes=48 * MIB, stderr_bytes=48 * MIB),
    "output_without_end": structs.replace(
        killed(Outcome.OUTPUT_EXCEEDED),
        stdout=b"x",
        stderr=b"x",
        stdout_bytes=3 * MIB,
        stderr_bytes=2 * MIB,
    ),
    "stopped_reader": structs.replace(refusing(0, longest_ms=400), stderr_bytes=24 * MIB),
    "unread_input": refusing(0, waited=1),
    "survivors": structs.replace(DONE, stdout=b"left\n"),
    "ignores_signals": structs.replace(TIMED_OUT, stdout=b"deaf\n"),
    "kills_itself": structs.replace(ended(Outcome.SIGNALLED), signal=9),
    "exits_137": ended(exit_code=137),
    "program_of_the_host": ErrProgramNotFound("there is none"),
    "program_by_dots": ErrProgramNotFound("there is none"),
    "directory_of_the_host": ErrInvalidJob("there is none"),
    "directory_by_dots": ErrInvalidJob("dots"),
    "image_by_dots": ErrInvalidJob("dots"),
    "argument_flood": refusing(0, arguments=7000, argument_bytes=700_000),
    "environment_flood": refusing(0, variables=2000, variable_bytes=800_000),
    "argument_overflow": ErrInvalidJob("too much"),
    "links_and_dots": refusing(14),
    "host_files": refusing(6, looked=5000),
    "host_environment": refusing(0, variables=4, allowed=4),
    "host_processes": refusing(7),
    "ptrace": refusing(10),
    "proc_and_sys": refusing(36),
    "network_and_metadata": refusing(23),
    "host_services": refusing(8),
    "privileges": refusing(10),
    "mounts": refusing(17),
    "bpf": refusing(2),
    "perf": refusing(3),
    "kvm_and_devices": refusing(10),
    "raw_sockets": refusing(5),
    "kernel_calls": refusing(14),
    "clock": refusing(5, moved=0),
}


def attack(name: str) -> Attack:
    return next(each for each in ATTACKS if each.name == name)


def good(name: str) -> Observed:
    return Observed(
        scene=SCENE, ending=GOOD[name], neighbour=NEIGHBOUR, worker_growth_bytes=2 * MIB
    )


def complaints(name: str, observed: Observed) -> str:
    return "\n".join(proof(attack(name), observed, duration_s=1.0).complaints)


each_attack = pytest.mark.parametrize("name", [each.name for each in ATTACKS])


def test_every_attack_has_a_name_of_its_own_and_an_example_here() -> None:
    assert [each.name for each in ATTACKS] == list(GOOD)


@each_attack
def test_an_attack_that_came_to_nothing_passes(name: str) -> None:
    assert complaints(name, good(name)) == ""


@each_attack
@pytest.mark.parametrize("slowness", [1.0, 10.0, MOST_SLOWNESS])
def test_on_any_machine_an_attack_asks_for_what_the_default_policy_grants(
    name: str, slowness: float
) -> None:
    try:
        job = attack(name).job(structs.replace(SCENE, slowness=slowness))
    except ErrInvalidJob:
        assert isinstance(GOOD[name], ErrInvalidJob)
    else:
        Policy().enforce(job)


WORSE: dict[str, Callable[[Observed], Observed]] = {
    "it did not end in time": lambda seen: structs.replace(seen, ending=None),
    "a fault of ours": lambda seen: structs.replace(seen, ending=ErrSandboxExecutionFailed("oh")),
    "left on the host: process 7": lambda seen: structs.replace(seen, left=("process 7",)),
    "the host's clock was set": lambda seen: structs.replace(
        seen, harm=("the host's clock was set",)
    ),
}


@each_attack
def test_what_must_never_be_fails_every_attack(name: str) -> None:
    for complaint, worse in WORSE.items():
        assert complaint in complaints(name, worse(good(name)))


@each_attack
def test_a_program_that_just_ends_well_has_not_been_an_attack(name: str) -> None:
    idle = structs.replace(good(name), ending=DONE)

    assert complaints(name, idle) != ""


RESULT_WORSE: dict[str, Callable[[Result], Result]] = {
    "a secret of the host is in its output": lambda result: structs.replace(
        result, stderr=b"HOST_LURE=5ec3e7"
    ),
    "asked for were": lambda result: structs.replace(
        result, host_limits=structs.replace(HELD, memory_bytes=65 * MIB)
    ),
    "bytes of memory of": lambda result: structs.replace(
        result, usage=structs.replace(USED, peak_memory_bytes=70 * MIB)
    ),
    "tasks of 96": lambda result: structs.replace(
        result, usage=structs.replace(USED, peak_tasks=97)
    ),
    "bytes of stderr were kept": lambda result: structs.replace(result, stderr=bytes(300_000)),
    "does not tell limits": lambda result: structs.replace(result, host_limits=None),
    "it was not seen dead": lambda result: structs.replace(
        result, termination=structs.replace(KILLED, verified_dead=False)
    ),
    "its death took 11.00 s": lambda result: structs.replace(
        result, termination=structs.replace(KILLED, latency_s=11.0)
    ),
}


@pytest.mark.parametrize(
    "name", [name for name, ending in GOOD.items() if isinstance(ending, Result)]
)
def test_a_result_that_tells_of_a_broken_limit_fails_every_attack(name: str) -> None:
    ending = GOOD[name]
    assert isinstance(ending, Result)
    for complaint, worse in RESULT_WORSE.items():
        assert complaint in complaints(name, structs.replace(good(name), ending=worse(ending)))


@pytest.mark.parametrize(
    ("certificate", "complaint"),
    [
        (None, "nothing certifies its death"),
        (KILLED, "it was certified to have died of wall_timeout, not output_exceeded"),
    ],
)
def test_an_end_that_corral_brought_about_needs_a_certificate_of_it(
    certificate: Termination | None, complaint: str
) -> None:
    seen = good("output_without_end")
    assert isinstance(seen.ending, Result)
    ending = structs.replace(seen.ending, termination=certificate)

    assert complaint in complaints("output_without_end", structs.replace(seen, ending=ending))


def test_a_flood_that_goes_on_after_its_limit_is_told() -> None:
    seen = good("output_without_end")
    assert isinstance(seen.ending, Result)
    ending = structs.replace(seen.ending, stderr_bytes=20 * MIB)

    assert "with a limit of" in complaints(
        "output_without_end", structs.replace(seen, ending=ending)
    )


def test_a_gvisor_that_gives_a_guest_no_file_system_of_its_own_is_not_blamed() -> None:
    seen = structs.replace(good("disk_of_its_own"), ending=refusing(1))

    assert complaints("disk_of_its_own", seen) == ""


@pytest.mark.parametrize(
    "tasks", [HostLimits(memory_bytes=64 * MIB, swap_bytes=None, cpus=1.0, tasks=96)]
)
def test_a_host_that_does_not_count_swap_is_not_blamed(tasks: HostLimits) -> None:
    observed = structs.replace(good("bpf"), ending=structs.replace(refusing(2), host_limits=tasks))

    assert complaints("bpf", observed) == ""


@pytest.mark.parametrize(
    ("name", "ending", "complaint"),
    [
        (
            "fork_bomb",
            structs.replace(TIMED_OUT, usage=structs.replace(USED, peak_tasks=20)),
            "20 tasks only",
        ),
        ("thread_bomb", TIMED_OUT, "it came to 0 only"),
        ("memory_anonymous", TIMED_OUT, "not out_of_memory but wall_timeout"),
        ("memory_page_cache", refusing(0, read=MIB), "it read 1048576 bytes"),
        ("disk_fill", refusing(0, written=32 * MIB, no_space=1), "it wrote 33554432 bytes"),
        ("disk_fill", refusing(0, written=16 * MIB, no_space=0), "no space"),
        ("inode_fill", ended(Outcome.OUT_OF_MEMORY), "it came to 0 only"),
        (
            "output_flood",
            structs.replace(DONE, stdout_bytes=48 * MIB, stderr_bytes=7),
            "7 bytes of stderr",
        ),
        (
            "stopped_reader",
            structs.replace(refusing(0, longest_ms=3), stderr_bytes=24 * MIB),
            "nobody stopped reading",
        ),
        ("stopped_reader", refusing(0, longest_ms=400), "0 bytes were counted"),
        ("unread_input", refusing(0), "did not come to its end"),
        ("survivors", structs.replace(DONE, stdout=b""), "it said b''"),
        ("survivors", structs.replace(DONE, stdout=b"left\n", duration_s=55.0), "it took 55.0 s"),
        ("kills_itself", structs.replace(ended(Outcome.SIGNALLED), signal=15), "signal 15, not 9"),
        ("kills_itself", ended(exit_code=137), "not signalled but exited"),
        ("exits_137", ended(Outcome.OUT_OF_MEMORY), "not exited but out_of_memory"),
        ("exits_137", structs.replace(ended(Outcome.SIGNALLED), signal=9), "but signalled"),
        ("program_of_the_host", ErrInvalidJob("other"), "not program_not_found but invalid_job"),
        (
            "argument_flood",
            refusing(0, arguments=7000, argument_bytes=1),
            "argument_bytes: 1 arrived",
        ),
        ("host_environment", refusing(0, variables=5, allowed=4), "it has 5 variables"),
        ("host_files", refusing(6, looked=3), "did not look through the image"),
        ("mounts", refusing(16), "it tried 16 things, not 17"),
        ("clock", telling({}, {"set the time": "0"}), "it could set the time: 0"),
        ("clock", refusing(5, moved=99), "another time"),
        ("bpf", ended(exit_code=1), "exit code 1, not 0"),
        ("bpf", ended(exit_code=0, stdout=b"{}"), "did not tell"),
    ],
)
def test_each_verdict_has_a_reason_of_its_own_to_fail(
    name: str, ending: Result | CorralError, complaint: str
) -> None:
    assert complaint in complaints(name, structs.replace(good(name), ending=ending))


@pytest.mark.parametrize("name", ["output_flood", "stopped_reader", "unread_input"])
def test_a_worker_that_grows_fails_what_floods_it(name: str) -> None:
    assert "grew by" in complaints(name, structs.replace(good(name), worker_growth_bytes=100 * MIB))
    assert "not measured" in complaints(name, structs.replace(good(name), worker_growth_bytes=None))


@pytest.mark.parametrize("name", [each.name for each in ATTACKS if each.neighbour])
@pytest.mark.parametrize(
    "beside", [None, TIMED_OUT, structs.replace(NEIGHBOUR, stdout=b"1"), ErrInvalidJob("x")]
)
def test_an_innocent_job_that_suffers_fails_the_bomb_beside_it(
    name: str, beside: Result | CorralError | None
) -> None:
    observed = structs.replace(good(name), neighbour=beside)

    assert "an innocent job beside it" in complaints(name, observed)


# The command


PASSED = proof(attack("fork_bomb"), good("fork_bomb"), duration_s=1.5)
FAILED = proof(attack("bpf"), structs.replace(good("bpf"), ending=TIMED_OUT), duration_s=2.0)
CAMPAIGN = Campaign(
    passed=True,
    attacks=(PASSED,),
    left=(),
    duration_s=3.0,
    slowness=1.0,
    runsc_version="release-20240729.0",
    platform="systrap",
    cgroup_version=2,
)


@pytest.mark.parametrize(
    ("campaign", "status"),
    [
        (CAMPAIGN, 0),
        (structs.replace(CAMPAIGN, attacks=(PASSED, FAILED), passed=False), 1),
        (structs.replace(CAMPAIGN, left=("process 7",), passed=False), 1),
    ],
)
def test_the_exit_code_tells_whether_all_attacks_came_to_nothing(
    monkeypatch: pytest.MonkeyPatch, campaign: Campaign, status: int
) -> None:
    monkeypatch.setattr(proving, "attack_host", _returning(campaign))

    shown = CliRunner().invoke(corral, ["doctor", "--prove"])
    document = CliRunner().invoke(corral, ["doctor", "--prove", "--json"])

    assert (shown.exit_code, document.exit_code) == (status, status)
    assert json.loads(document.output)["passed"] == (status == 0)


def test_people_are_told_what_came_of_each_attack_and_what_should_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    campaign = structs.replace(CAMPAIGN, attacks=(PASSED, FAILED), passed=False)
    monkeypatch.setattr(proving, "attack_host", _returning(campaign))

    lines = CliRunner().invoke(corral, ["doctor", "--prove"]).output.splitlines()

    assert lines[1].split()[:3] == ["fork_bomb", "pass", "pids_exceeded"]
    assert lines[2].split()[:3] == ["bpf", "FAIL", "wall_timeout"]
    assert lines[4] == "bpf: expected: no program and no map can be loaded"
    assert lines[5] == "  not exited but wall_timeout"
    assert lines[-1] == (
        "1 of 2 attacks came to nothing, in 3 s; runsc release-20240729.0, systrap,"
        " cgroup version 2"
    )


def test_the_document_lists_every_attack_with_its_figures() -> None:
    (told,) = json.loads(proving.as_json(CAMPAIGN))["attacks"]

    assert told == {
        "name": "fork_bomb",
        "passed": True,
        "expected": "held within its limits of tasks and memory, killed at one of them",
        "outcome": "pids_exceeded",
        "complaints": [],
        "duration_s": 1.5,
        "run_s": 1.0,
        "peak_memory_bytes": 64 * MIB,
        "memory_limit_bytes": 64 * MIB,
        "peak_tasks": 90,
        "tasks_limit": 96,
        "kill_latency_s": None,
        "worker_growth_bytes": 2 * MIB,
    }


@pytest.mark.parametrize(
    "arguments",
    [["--only", "fork_bomb"], ["--prove", "--only", "nix"], ["--prove", "--slowness", "0"]],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(corral, ["doctor", *arguments]).exit_code == 2


def test_settings_that_a_worker_would_refuse_prove_nothing() -> None:
    done = CliRunner().invoke(corral, ["doctor", "--prove", "--config", "/nonexistent.toml"])

    assert done.exit_code == 1
    assert "cannot be read" in done.output


def _returning(campaign: Campaign) -> Callable[..., object]:
    async def attack_host(*_: object, **__: object) -> Campaign:
        return campaign

    return attack_host
