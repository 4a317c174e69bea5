"""The log: what its lines look like, and what never gets into one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from corral import Job, Outcome, Result
from corral_worker import logs
from corral_worker.logs import REDACTED
from corral_worker.secret import Secret
from corral_worker.settings import LogFormat

SECRET = "hunter2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    arq = [logging.getLogger(name) for name in ("arq", "arq.worker", "arq.jobs")]
    loggers = [root, *arq]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    yield
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO) -> structlog.stdlib.BoundLogger:
    logs.configure("json", "info", stream)
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("corral_worker.test")
    return logger


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# The lines


def test_an_event_is_one_line_of_json(
    log: structlog.stdlib.BoundLogger, stream: io.StringIO
) -> None:
    log.info("job.finished", job_id="acme:1", exit_code=0)
    (line,) = lines(stream)
    assert str(line.pop("timestamp")).endswith("Z")
    assert line == {
        "event": "job.finished",
        "level": "info",
        "logger": "corral_worker.test",
        "job_id": "acme:1",
        "exit_code": 0,
    }


def test_the_standard_librarys_events_are_lines_like_ours(
    log: structlog.stdlib.BoundLogger, stream: io.StringIO
) -> None:
    logging.getLogger("redis").warning("lost %s", "it")
    (line,) = lines(stream)
    assert str(line.pop("timestamp")).endswith("Z")
    assert line == {"event": "lost it", "level": "warning", "logger": "redis"}


def test_what_is_bound_to_the_context_is_in_every_line(
    log: structlog.stdlib.BoundLogger, stream: io.StringIO
) -> None:
    with structlog.contextvars.bound_contextvars(job_id="acme:1"):
        log.info("one")
    log.info("two")
    assert [line.get("job_id") for line in lines(stream)] == ["acme:1", None]


def test_less_severe_events_are_left_out(stream: io.StringIO) -> None:
    logs.configure("json", "warning", stream)
    structlog.get_logger("corral_worker.test").info("no")
    logging.getLogger("redis").info("no")
    structlog.get_logger("corral_worker.test").warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("console", io.StringIO(), False),
    ],
    ids=["auto to a file", "auto to a terminal", "json to a terminal", "console to a file"],
)
def test_the_format_is_json_unless_people_read_it(
    log_format: LogFormat, stream: io.StringIO, *, is_json: bool
) -> None:
    logs.configure(log_format, "info", stream)
    structlog.get_logger().info("event")
    assert stream.getvalue().startswith("{") is is_json


def test_the_log_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    structlog.get_logger().info("event")
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "event"


def test_the_last_configuration_counts(stream: io.StringIO) -> None:
    logs.configure("json", "info", first := io.StringIO())
    logger = structlog.get_logger("corral_worker.test")
    logger.info("one")
    logs.configure("json", "info", stream)
    logger.info("two")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(stream)] == ["two"]


# What never gets into a line


@pytest.mark.parametrize("name", ["arq", "arq.worker", "arq.jobs", "arq.connections", "arq.new"])
def test_arq_is_silent_for_it_logs_what_jobs_are_given(
    log: structlog.stdlib.BoundLogger,
    stream: io.StringIO,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    logging.getLogger(name).critical("  0.10s → %s:execute(%r)", "acme:1", SECRET)
    assert stream.getvalue() == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["arq.worker", "arq.jobs"])
def test_arq_is_silent_even_if_it_was_loud_before(
    stream: io.StringIO, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    loud = logging.getLogger(name)
    loud.setLevel(logging.DEBUG)
    loud.addHandler(logging.StreamHandler())
    logs.configure("json", "debug", stream)
    loud.error(SECRET)
    assert stream.getvalue() == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "key",
    ["argv", "env", "stdin", "stdout", "stderr", "redis_url", "password", "token", "Password"],
)
def test_a_key_that_may_hold_a_payload_or_a_secret_has_no_value(
    log: structlog.stdlib.BoundLogger, stream: io.StringIO, key: str
) -> None:
    log.info("event", **{key: [SECRET]})
    log.info("event", inner={"deep": [{key: SECRET}]})
    assert [line.get(key) for line in lines(stream)] == [REDACTED, None]
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    "value",
    [
        SECRET.encode(),
        Job(argv=(SECRET,)),
        Result(outcome=Outcome.EXITED, stdout=SECRET.encode()),
        [Job(argv=(SECRET,))],
        {"job": SECRET},
        Secret(SECRET),
        f"redis://user:{SECRET}@redis:6379/0",
        ValueError(f"cannot reach redis://:{SECRET}@redis"),
        f"rediss://:p@{SECRET}@redis",
    ],
    ids=["bytes", "job", "result", "list", "dict", "secret", "url", "error", "odd url"],
)
def test_values_that_hold_payloads_or_credentials_are_replaced(
    stream: io.StringIO, log_format: LogFormat, value: object
) -> None:
    logs.configure(log_format, "info", stream)
    structlog.get_logger().info("event", value=value)
    assert "event" in stream.getvalue()
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_values_and_no_credentials(
    stream: io.StringIO, log_format: LogFormat
) -> None:
    logs.configure(log_format, "info", stream)

    def connect(url: str) -> None:
        raise ConnectionError(f"{url} does not answer")

    try:
        connect(f"redis://:{''.join(reversed('2retnuh'))}@redis")
    except ConnectionError:
        structlog.get_logger().exception("redis.lost")
    assert "ConnectionError: redis://***@redis does not answer" in stream.getvalue()
    assert SECRET not in stream.getvalue()


# Logging never raises


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError(SECRET)

    __repr__ = __str__


def test_what_cannot_be_logged_is_named_and_raises_nothing(
    stream: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    # In here, for pytest adds a handler of its own when the fixtures are done.
    logs.configure("json", "info", stream)
    log = structlog.get_logger("corral_worker.test")
    log.info("event", value=Hostile())
    log.info("%d of them", SECRET)
    logging.getLogger("redis").warning("%d", SECRET)
    assert [line["event"] for line in lines(stream)] == ["log.unprintable"] * 3
    assert [line["error"] for line in lines(stream)] == ["RuntimeError", "TypeError", "TypeError"]
    assert SECRET not in stream.getvalue()
    assert capfd.readouterr() == ("", "")


def test_endless_and_unusual_values_can_be_logged(
    log: structlog.stdlib.BoundLogger, stream: io.StringIO
) -> None:
    endless: list[object] = []
    endless.append(endless)
    log.info("event", endless=endless, nan=float("nan"), keys={1: "x"}, lone="\ud800")
    (line,) = lines(stream)
    assert line["nan"] == "nan"
    assert line["keys"] == {"1": "x"}


def test_a_stream_that_is_gone_raises_nothing(
    log: structlog.stdlib.BoundLogger, stream: io.StringIO
) -> None:
    stream.close()
    log.info("event")
    logging.getLogger("redis").warning("event")
