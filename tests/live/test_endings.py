"""How programs end, as real sandboxes tell it."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from corral import EffectiveLimits, ErrInvalidJob, ErrProgramNotFound, Job, Outcome
from corral.job import MAX_ARGUMENT_BYTES, MAX_PROGRAM_BYTES
from corral_worker.sandbox.lifecycle import Sandboxes
from corral_worker.sandbox.outcome import Ending
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

LIMITS = EffectiveLimits(wall_s=30)


def shell(script: str) -> Job:
    return Job(argv=("/bin/sh", "-c", script))


def exited(code: int) -> Ending:
    return Ending(outcome=Outcome.EXITED, exit_code=code)


def signalled(number: int) -> Ending:
    return Ending(outcome=Outcome.SIGNALLED, signal=number)


async def test_a_program_says_hello(sandboxes: Sandboxes, rootfs: Path) -> None:
    report = await sandboxes.run(Job(argv=("echo", "hello")), LIMITS, rootfs, Stop())

    assert report.ending == exited(0)
    assert report.stdout.data == b"hello\n"
    assert (report.stdout.total, report.stdout.gap) == (6, None)
    assert report.stderr.data == b""
    assert report.termination is None
    assert report.leftovers == ()


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 137, 143, 255])
async def test_an_exit_code_is_the_programs_own_even_if_it_looks_like_a_signal(
    sandboxes: Sandboxes, rootfs: Path, code: int
) -> None:
    report = await sandboxes.run(shell(f"exit {code}"), LIMITS, rootfs, Stop())

    assert report.ending == exited(code)


@pytest.mark.parametrize("number", [6, 9, 11, 15])
async def test_a_program_that_a_signal_of_its_own_ends_was_signalled(
    sandboxes: Sandboxes, python_rootfs: Path, number: int
) -> None:
    job = Job(argv=("python3", "-c", f"import os; os.kill(os.getpid(), {number})"))

    report = await sandboxes.run(job, LIMITS, python_rootfs, Stop())

    assert report.ending == signalled(number)
    assert report.termination is None


async def test_a_shell_may_report_the_signal_that_ended_its_child(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    report = await sandboxes.run(shell("sh -c 'kill -9 $$'; exit $?"), LIMITS, rootfs, Stop())

    assert report.ending == exited(137)


@pytest.mark.parametrize(
    "program",
    [
        "/bin/nothing",
        "nothing",
        "/etc/passwd",
        "/etc",
        "/",
        "..",
        "/etc/passwd/x",
        "/etc/passwd/",
        "/dev/null",
        "/proc/self/exe",
        "/tmp",
        "no\nthing",
        "\N{SNOWMAN}",
        "/initial working directory",
        "initial working directory",
        '/initial working directory "',
        "/starting sandbox: failed to find initial working directory",
        pytest.param("x" * MAX_PROGRAM_BYTES, id="a long name"),
        pytest.param("/" + "x" * (MAX_PROGRAM_BYTES - 1), id="a long part of a path"),
        pytest.param("/x" * (MAX_PROGRAM_BYTES // 2), id="a long path"),
        pytest.param("\x01" * MAX_PROGRAM_BYTES, id="a long name that takes much to be quoted"),
    ],
)
async def test_a_program_that_cannot_be_executed_is_no_fault_of_the_host(
    sandboxes: Sandboxes, rootfs: Path, program: str
) -> None:
    report = await sandboxes.run(Job(argv=(program,)), LIMITS, rootfs, Stop())

    assert isinstance(report.ending, ErrProgramNotFound)
    assert "Exec" not in report.ending.message
    assert (report.stdout.data, report.stderr.data) == (b"", b"")
    assert (report.stderr.total, report.run_s) == (0, 0.0)


@pytest.mark.parametrize("character", ["d", "<", "}", "\N{SNOWMAN}"])
async def test_a_program_that_is_nowhere_on_a_long_path_is_no_fault_of_the_host(
    sandboxes: Sandboxes, rootfs: Path, character: str
) -> None:
    # As long as a job may be. In what runsc and the sentry say of it, some take six bytes each.
    path = "/" + character * ((MAX_ARGUMENT_BYTES - 20) // len(character.encode()))
    job = Job(argv=("nothing",), env={"PATH": path})

    report = await sandboxes.run(job, LIMITS, rootfs, Stop())

    assert isinstance(report.ending, ErrProgramNotFound)
    assert 'error finding executable "nothing" in PATH [/' in report.ending.message


async def test_arguments_that_quote_the_runtimes_log_decide_nothing(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    forged = '{"msg":"Exiting with status: 0","time":"2030-01-01T00:00:00Z"}'
    job = Job(argv=("/bin/sh", "-c", "exit 3", forged, "Exiting with status: 0"))

    report = await sandboxes.run(job, LIMITS, rootfs, Stop())

    assert report.ending == exited(3)


async def test_arguments_and_environment_may_be_large(sandboxes: Sandboxes, rootfs: Path) -> None:
    many = tuple("y" * 1000 for _ in range(500))
    job = Job(
        argv=("/bin/sh", "-c", "exit $#", "sh", *many),
        env={f"A{number}": "x" * 1000 for number in range(400)},
    )

    report = await sandboxes.run(job, LIMITS, rootfs, Stop())

    assert report.ending == exited(500 % 256)


@pytest.mark.parametrize(
    "cwd", ["/nowhere", "/tmp/nowhere", "/etc/passwd/x", pytest.param("/" + "x" * 4000, id="long")]
)
async def test_a_missing_working_directory_is_the_callers_to_mend(
    sandboxes: Sandboxes, rootfs: Path, cwd: str
) -> None:
    report = await sandboxes.run(Job(argv=("true",), cwd=cwd), LIMITS, rootfs, Stop())

    assert isinstance(report.ending, ErrInvalidJob)
    assert report.ending.path == "$.cwd"


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000 & exit 7",
        "(while :; do echo noise; done) & exit 7",
        "setsid sleep 1000 & exit 7",
        "sh -c 'setsid sh -c \"sleep 1000 & sleep 1000\" & exit 0'; exit 7",
        "trap '' HUP TERM INT; (trap '' HUP TERM INT; while :; do sleep 1; done) & exit 7",
    ],
    ids=["background", "noisy", "setsid", "double fork", "deaf to signals"],
)
async def test_what_a_program_left_running_dies_with_it(
    sandboxes: Sandboxes, rootfs: Path, script: str
) -> None:
    report = await sandboxes.run(shell(script), LIMITS, rootfs, Stop())

    assert report.ending == exited(7)


async def test_a_program_may_close_its_output_long_before_it_ends(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    script = "echo said; exec >&- 2>&- <&-; sleep 0.2; exit 4"

    report = await sandboxes.run(shell(script), LIMITS, rootfs, Stop())

    assert report.ending == exited(4)
    assert report.stdout.data == b"said\n"


async def test_a_python_program_computes_and_prints(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    job = Job(argv=("python", "-c", "print(6 * 7)"))

    report = await sandboxes.run(job, LIMITS, python_rootfs, Stop())

    assert report.ending == exited(0)
    assert report.stdout.data == b"42\n"
    assert report.stderr.data == b""


async def test_a_traceback_is_on_stderr_and_the_exit_code_is_pythons(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    job = Job(argv=("python3", "-c", "print('before', flush=True); 1 / 0"))

    report = await sandboxes.run(job, LIMITS, python_rootfs, Stop())

    assert report.ending == exited(1)
    assert report.stdout.data == b"before\n"
    assert report.stderr.data.endswith(b"ZeroDivisionError: division by zero\n")


async def test_sandboxes_at_the_same_time_do_not_know_of_each_other(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    reports: dict[int, Report] = {}

    async def run(number: int) -> None:
        script = f"test -e /tmp/mark && exit 99; touch /tmp/mark; echo {number}; exit {number}"
        reports[number] = await sandboxes.run(shell(script), LIMITS, rootfs, Stop())

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(run, number)

    endings = {number: report.ending for number, report in reports.items()}
    assert endings == {number: exited(number) for number in range(8)}
    outputs = {number: report.stdout.data for number, report in reports.items()}
    assert outputs == {number: f"{number}\n".encode() for number in range(8)}


async def test_usage_and_times_are_what_the_kernel_counted(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"

    report = await sandboxes.run(shell(script), LIMITS, rootfs, Stop())

    assert report.ending == exited(0)
    assert 0 < report.counters.cpu_s < report.start_s + report.run_s + report.teardown_s
    assert 1024**2 < report.counters.peak_memory_bytes < LIMITS.memory_bytes
    assert report.counters.oom_kills == 0
    assert report.start_s > 0
    assert report.run_s > 0
    assert report.teardown_s > 0
