"""The wire format: what comes back is what was sent."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from arq.worker import JobExecutionFailed
from hypothesis import example, given
from hypothesis import strategies as st
from support.wire import FULL_JOB, FULL_RESULT, MANY, REJECTED, call, ending

from corral import (
    CorralError,
    ErrInvalidJob,
    ErrSecurityViolation,
    Job,
    JobCancelled,
    Limits,
    Mount,
    Outcome,
    Result,
)
from corral.codec import decode_result, deserialize, serialize

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
JOBS = st.builds(
    Job,
    argv=st.lists(TEXT, min_size=1, max_size=4).filter(lambda argv: argv[0] != "").map(tuple),
    image=TEXT.filter(bool),
    env=st.dictionaries(TEXT, TEXT, max_size=3),
    cwd=st.sampled_from(["/", "/workspace", "/a..b", "/tmp/\N{SNOWMAN}"]),
    stdin=st.binary(max_size=64),
    limits=st.builds(
        Limits,
        wall_s=st.none() | st.floats(0, 604_800),
        memory_bytes=st.sampled_from([None, 0]) | st.integers(2**24, 2**40),
        pids=st.none() | st.integers(0, 100_000),
    ),
    network=TEXT,
    user=st.sampled_from(["nobody", "", "root", "1000", "1:2"]),
    start_within_s=st.none() | st.floats(0.001, 2_592_000),
    attempts=st.integers(1, 10),
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
    privileged=st.booleans(),
    capabilities=st.lists(TEXT, max_size=2).map(tuple),
    mounts=st.lists(st.builds(Mount, source=TEXT, target=TEXT), max_size=2).map(tuple),
    host_settings=st.dictionaries(TEXT, TEXT, max_size=2),
)
RESULTS = st.builds(
    Result,
    outcome=st.sampled_from(Outcome),
    exit_code=st.none() | st.integers(0, 255),
    stdout=st.binary(max_size=64),
    stderr=st.binary(max_size=64),
    stdout_bytes=st.integers(0, 2**62),
    duration_s=st.floats(0, 1e6),
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
)


@MANY
@given(JOBS)
@example(FULL_JOB)
def test_a_job_comes_back_as_it_was_sent(job: Job) -> None:
    decoded = deserialize(serialize(call(job)))

    assert decoded == dict(call(job))
    assert type(decoded["a"][0]) is Job  # type: ignore[index]


@MANY
@given(RESULTS)
@example(FULL_RESULT)
def test_a_result_comes_back_as_it_was_sent(result: Result) -> None:
    assert decode_result(serialize(ending(result))) == result


def test_arqs_own_fields_come_back_beside_the_result() -> None:
    assert deserialize(serialize(ending(FULL_RESULT))) == {**ending(FULL_RESULT), "a": ()}


def test_a_plain_dict_is_sent_as_the_job_it_describes() -> None:
    assert deserialize(serialize(call({"argv": ["true"]}))) == dict(call(Job(argv=("true",))))


def test_an_error_comes_back_as_it_was_raised() -> None:
    with pytest.raises(ErrSecurityViolation) as caught:
        decode_result(serialize(ending(REJECTED)))

    assert caught.value.to_data() == REJECTED.to_data()


def test_an_error_is_no_success_for_arq() -> None:
    decoded = deserialize(serialize(ending(REJECTED)))

    assert decoded["s"] is False
    assert isinstance(decoded["r"], ErrSecurityViolation)


def test_an_error_of_a_newer_version_keeps_its_code() -> None:
    data = serialize(ending(CorralError("too many"))).replace(b'"error",', b'"coming_later",')

    with pytest.raises(CorralError, match="too many") as caught:
        decode_result(data)

    assert (type(caught.value), caught.value.code) == (CorralError, "coming_later")


def test_fields_of_a_newer_result_are_ignored() -> None:
    data = msgspec.json.decode(serialize(ending(FULL_RESULT)))
    data["r"]["result"]["energy_j"] = 12
    data["trace"] = "00-ab"

    assert decode_result(msgspec.json.encode(data)) == FULL_RESULT


@pytest.mark.parametrize("wrap", [RuntimeError, KeyError])
def test_an_error_is_found_behind_what_arq_wraps_around_it(wrap: type[Exception]) -> None:
    error = wrap("unable to deserialize job")
    error.__cause__ = ErrInvalidJob("no", path="$.argv")

    with pytest.raises(ErrInvalidJob) as caught:
        decode_result(serialize(ending(error)))

    assert caught.value.path == "$.argv"


def test_a_failure_of_arq_keeps_arqs_words() -> None:
    with pytest.raises(CorralError, match="max 5 retries exceeded") as caught:
        decode_result(serialize(ending(JobExecutionFailed("max 5 retries exceeded"))))

    assert caught.value.code == "job_execution_failed"


@pytest.mark.parametrize("stranger", [OSError(2, "No such file", "/root/.ssh"), "text", None, 5])
def test_what_a_stranger_raised_or_returned_does_not_cross_the_wire(stranger: object) -> None:
    data = serialize(ending(stranger))

    assert b".ssh" not in data
    with pytest.raises(CorralError, match="see its log") as caught:
        decode_result(data)
    assert (caught.value.code, caught.value.retry_safety) == ("internal", "unknown")


@pytest.mark.parametrize(
    ("cancellation", "result"),
    [
        (asyncio.CancelledError(), Result(outcome=Outcome.CANCELLED)),
        (
            JobCancelled(Result(outcome=Outcome.CANCELLED, stdout=b"so far")),
            Result(outcome=Outcome.CANCELLED, stdout=b"so far"),
        ),
        (Result(outcome=Outcome.CANCELLED), Result(outcome=Outcome.CANCELLED)),
    ],
)
def test_a_cancellation_is_a_result_for_corral_and_a_cancellation_for_arq(
    cancellation: object, result: Result
) -> None:
    data = serialize(ending(cancellation))

    assert decode_result(data) == result
    decoded = deserialize(data)
    assert decoded["s"] is False
    assert isinstance(decoded["r"], JobCancelled)
    assert isinstance(decoded["r"], asyncio.CancelledError)
    assert decoded["r"].result == result


@pytest.mark.parametrize(
    "result", [FULL_RESULT, REJECTED, RuntimeError(), asyncio.CancelledError()]
)
def test_a_result_never_holds_the_job(result: object) -> None:
    fields = {**ending(result), "a": (Job(argv=("s3cret",)),), "k": {"also": "s3cret"}}

    assert b"s3cret" not in serialize(fields)
