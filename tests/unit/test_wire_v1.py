"""What version 1 wrote is read for ever: the files in ``tests/wire/v1`` must never change."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from support.wire import FULL_JOB, FULL_RESULT, REJECTED, call, ending

from corral import ErrSecurityViolation, ErrWorkerLost, Job
from corral.codec import decode_result, deserialize, serialize

WIRE = Path(__file__).parent.parent / "wire" / "v1"


@pytest.mark.parametrize(
    ("name", "job"),
    [("job-minimal.json", Job(argv=("true",))), ("job-full.json", FULL_JOB)],
)
def test_a_job_of_version_1_is_read(name: str, job: Job) -> None:
    assert deserialize((WIRE / name).read_bytes()) == dict(call(job))


def test_a_result_of_version_1_is_read() -> None:
    assert decode_result((WIRE / "result.json").read_bytes()) == FULL_RESULT


def test_the_way_of_a_start_is_told_and_unknown_of_older_workers() -> None:
    older = FULL_RESULT.provenance
    assert older is not None
    newer = msgspec.structs.replace(older, start="warm", start_way="control_socket")
    result = msgspec.structs.replace(FULL_RESULT, provenance=newer)

    assert decode_result(serialize(ending(result))) == result
    assert older.start_way is None


def test_an_error_of_version_1_is_read() -> None:
    with pytest.raises(ErrWorkerLost, match="the worker went away") as caught:
        decode_result((WIRE / "error-fault.json").read_bytes())

    assert (caught.value.retryable, caught.value.retry_safety) == (False, "started")
    assert caught.value.context == {"host": "host-1"}


def test_a_rejection_of_version_1_is_read() -> None:
    with pytest.raises(ErrSecurityViolation) as caught:
        decode_result((WIRE / "error-rejection.json").read_bytes())

    assert caught.value.to_data() == REJECTED.to_data()


def test_this_release_writes_what_version_1_reads() -> None:
    for name, data in {
        "job-full.json": serialize(call(FULL_JOB)),
        "result.json": serialize(ending(FULL_RESULT)),
        "error-rejection.json": serialize(ending(REJECTED)),
    }.items():
        assert json.loads(data) == json.loads((WIRE / name).read_bytes())
