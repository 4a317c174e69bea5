"""The wire format: what comes back is what was sent, and nothing else gets in."""

from __future__ import annotations

import asyncio
import json
import pickle  # noqa: TID251 - what arq sends without corral's codec
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from arq.worker import JobExecutionFailed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corral import (
    CorralError,
    EffectiveLimits,
    ErrInvalidJob,
    ErrSecurityViolation,
    ErrWorkerLost,
    HostLimits,
    Job,
    JobCancelled,
    Limits,
    Mount,
    Outcome,
    Phases,
    Provenance,
    Result,
    Termination,
    Usage,
    Violation,
)
from corral.codec import (
    MAX_PAYLOAD_BYTES,
    MAX_RESULT_BYTES,
    _WireJob,
    decode_job,
    decode_result,
    deserialize,
    encode_job,
    serialize,
)
from corral.policy import HOST_OWNED_FIELDS

MANY = settings(max_examples=60)
WIRE = Path(__file__).parent.parent / "wire" / "v1"
HUNDRED_MEGABYTES = 100_000_000

FULL_JOB = Job(
    argv=("python3", "-c", "print('\N{SNOWMAN}')"),
    image="python",
    env={"LANG": "C.UTF-8", "EMPTY": ""},
    cwd="/workspace/src",
    stdin=b"\x00\xff in",
    limits=Limits(
        wall_s=10.5,
        cpu_time_s=20.0,
        cpus=0.5,
        memory_bytes=268435456,
        pids=32,
        disk_bytes=1048576,
        file_bytes=524288,
        output_bytes=65536,
        output_kill_bytes=8388608,
        open_files=256,
    ),
    network="sandbox",
    user="1000:1000",
    start_within_s=60.0,
    attempts=3,
    labels={"request": "42"},
    privileged=True,
    read_only_root=False,
    seccomp="unconfined",
    capabilities=("CAP_NET_RAW",),
    mounts=(Mount(source="/srv", target="/data"),),
    host_settings={"platform": "set"},
)
FULL_RESULT = Result(
    outcome=Outcome.WALL_TIMEOUT,
    signal=9,
    stdout=b"head\xfftail",
    stderr=b"warning",
    stdout_bytes=5000,
    stderr_bytes=7,
    stdout_gap=4,
    truncated=True,
    duration_s=10.5,
    usage=Usage(cpu_s=1.25, peak_memory_bytes=33554432, peak_tasks=12),
    phases=Phases(queued_s=0.25, sandbox_s=0.5, run_s=10.5, teardown_s=0.125),
    timing_unreliable=True,
    limits=EffectiveLimits(wall_s=10.5),
    host_limits=HostLimits(memory_bytes=268435456, swap_bytes=None, cpus=0.5, tasks=96),
    termination=Termination(
        cause=Outcome.WALL_TIMEOUT,
        requested_by="limit",
        steps=("runsc_kill", "cgroup_kill"),
        verified_dead=True,
        latency_s=0.0625,
    ),
    provenance=Provenance(
        image_digest="sha256:0123",
        runsc_version="release-20260101.0",
        platform="systrap",
        host="host-1",
        attempt=1,
        start="cold",
    ),
    started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    labels={"request": "42"},
)
REJECTED = ErrSecurityViolation(
    (Violation(rule="root_user", field="$.user", value="root", allowed="nobody"),),
    context={"tenant": "acme"},
)


def call(job: object) -> Mapping[str, object]:
    """What arq gives its serializer for a job."""
    return {"t": None, "f": "execute", "a": (job,), "k": {}, "et": 1_767_322_245_000}


def ending(result: object) -> Mapping[str, object]:
    """What arq gives its serializer for a result."""
    return {
        "t": 1,
        "f": "execute",
        "a": (FULL_JOB,),
        "k": {},
        "et": 1_767_322_245_000,
        "s": isinstance(result, Result),
        "r": result,
        "st": 1_767_322_245_250,
        "ft": 1_767_322_256_000,
        "q": "arq:queue:acme",
        "id": "acme:1",
    }


def envelope(job: bytes) -> bytes:
    return b'{"v":1,"f":"execute","et":1,"a":[%s]}' % job


# What is sent is what comes back.

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


# Nothing else gets in.


def refused(data: bytes) -> ErrInvalidJob:
    with pytest.raises(ErrInvalidJob) as caught:
        deserialize(data)
    assert len(str(caught.value)) < 500
    assert len(caught.value.path) <= 200
    return caught.value


def decodes_or_is_refused(data: bytes) -> None:
    try:
        deserialize(data)
    except ErrInvalidJob as error:
        assert len(str(error)) < 500  # noqa: PT017 - either may happen


VALID = [serialize(call(FULL_JOB)), serialize(ending(FULL_RESULT)), serialize(ending(REJECTED))]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["v", "f", "a", "k", "et", "t", "r", "s", "st", "ft", "q", "id"]
JOB_NAMES = [*Job.__struct_fields__, *HOST_OWNED_FIELDS]


@MANY
@given(st.binary())
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    decodes_or_is_refused(data)


@MANY
@given(st.sampled_from(VALID), st.data())
def test_any_damaged_payload_decodes_or_is_refused(payload: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(payload)))
    end = data.draw(st.integers(start, min(start + 8, len(payload))))

    decodes_or_is_refused(payload[:start] + data.draw(st.binary(max_size=8)) + payload[end:])


@MANY
@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_envelope_decodes_or_is_refused(fields: dict[str, object]) -> None:
    decodes_or_is_refused(json.dumps({"v": 1, "f": "execute", "et": 1, **fields}).encode())


@MANY
@given(st.dictionaries(st.sampled_from(JOB_NAMES) | st.text(), JSON))
def test_any_argument_decodes_or_is_refused(fields: dict[str, object]) -> None:
    decodes_or_is_refused(envelope(json.dumps({"argv": ["true"], **fields}).encode()))


@MANY
@given(st.dictionaries(st.sampled_from(Result.__struct_fields__), JSON))
def test_any_ending_decodes_or_is_refused(fields: dict[str, object]) -> None:
    data = {"v": 1, "f": "execute", "et": 1, "r": {"result": {"outcome": "exited", **fields}}}
    decodes_or_is_refused(json.dumps(data).encode())


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("fields", [call("job"), ending("result")], ids=["job", "result"])
def test_a_pickle_is_refused_and_the_remedy_named(
    protocol: int, fields: Mapping[str, object]
) -> None:
    data = pickle.dumps({**fields, "a": ()}, protocol)

    assert "job_serializer=corral.codec.serialize" in str(refused(data))
    with pytest.raises(ErrInvalidJob, match=r"job_deserializer=corral\.codec\.deserialize"):
        decode_result(data)


def test_a_pickle_is_never_written() -> None:
    class Unknown:
        def __reduce__(self) -> tuple[object, ...]:
            raise AssertionError("pickled")

    with pytest.raises(ErrInvalidJob, match="cannot be written as JSON"):
        serialize(call(Unknown()))
    assert serialize(ending(Unknown())).startswith(b"{")


@pytest.mark.parametrize("data", [VALID[0], VALID[1]], ids=["job", "result"])
def test_a_newer_version_is_refused_whatever_else_it_holds(data: bytes) -> None:
    error = refused(data.replace(b'"v":1', b'"v":2'))

    assert error.path == "$.v"
    assert "upgrade" in str(error)
    assert refused(b'{"v": 2, "shape": "new"}').path == "$.v"


@pytest.mark.parametrize("version", [b"0", b"-1", b"1.5", b'"1"', b"null", b"1e99", b"9" * 5000])
def test_a_strange_version_is_refused(version: bytes) -> None:
    assert refused(VALID[0].replace(b'"v":1', b'"v":' + version)).path == "$.v"


def test_an_envelope_without_a_version_is_refused() -> None:
    assert "`v`" in str(refused(b'{"f":"execute","et":1,"a":[{"argv":["true"]}]}'))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "$"),
        ({"argv": []}, "$.argv"),
        ({"argv": "ls -l"}, "$.argv"),
        ({"argv": ["a", 1]}, "$.argv[1]"),
        ({"argv": ["a", "b\0"]}, "$.argv[1]"),
        ({"argv": ["a"] * 65_537}, "$.argv"),
        ({"argv": ["a"], "limits": {"wall_s": -1}}, "$.limits.wall_s"),
        ({"argv": ["a"], "limits": {"pids": -1}}, "$.limits.pids"),
        ({"argv": ["a"], "limits": {"pids": 10**30}}, "$.limits.pids"),
        ({"argv": ["a"], "limits": {"memory_bytes": 2**50}}, "$.limits.memory_bytes"),
        ({"argv": ["a"], "limits": {"memory_bytes": 1.5}}, "$.limits.memory_bytes"),
        ({"argv": ["a"], "limits": {"memory_bytes": 2**24 - 1}}, "$.limits.memory_bytes"),
        ({"argv": ["a"], "limits": {"cpus": 0.01}}, "$.limits.cpus"),
        ({"argv": ["a"], "limits": {"open_files": 2**16}}, "$.limits.open_files"),
        ({"argv": ["a"], "limits": {"wall_s": 1e9}}, "$.limits.wall_s"),
        ({"argv": ["a"], "limits": {"cpus": True}}, "$.limits.cpus"),
        ({"argv": ["a"], "surprise": 1}, "$.surprise"),
        ({"argv": ["a"], "limits": {"gpus": 1}}, "$.limits.gpus"),
        ({"argv": ["a"], "mounts": [{"source": "/", "target": "/", "rw": 1}]}, "$.mounts[0].rw"),
        ({"argv": ["a"], "cwd": "/workspace/../.."}, "$.cwd"),
        ({"argv": ["a"], "cwd": "workspace"}, "$.cwd"),
        ({"argv": ["a"], "user": "alice"}, "$.user"),
        ({"argv": ["a"], "user": 0}, "$.user"),
        ({"argv": ["a"], "stdin": "not base64"}, "$.stdin"),
        ({"argv": ["a"], "attempts": 0}, "$.attempts"),
        ({"argv": ["a"], "start_within_s": 0}, "$.start_within_s"),
        ({"argv": ["a"], "image": ""}, "$.image"),
        ({"argv": ["a"], "labels": {"a": "b" * 257}}, "$.labels[...]"),
        ({"argv": ["a"], "labels": {"a" * 65: "b"}}, "$.labels"),
        ({"argv": ["a"], "host_settings": {"a" * 65: "b"}}, "$.host_settings"),
    ],
)
def test_a_malformed_job_is_refused_with_the_path_of_the_field(
    fields: dict[str, object], path: str
) -> None:
    assert refused(envelope(msgspec.json.encode(fields))).path == path


@pytest.mark.parametrize("field", ["x" * 1_000_000, "x - at `$.user`", "`", ""])
def test_the_name_of_an_unknown_field_is_told_in_few_words(field: str) -> None:
    assert refused(envelope(msgspec.json.encode({"argv": ["a"], field: 1}))).path.startswith("$")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(VALID[0].replace(b'"execute"', b'"shutdown"'), id="another function"),
        pytest.param(b'{"v":1,"f":"execute","et":1}', id="no arguments"),
        pytest.param(b'{"v":1,"f":"execute","et":1,"a":[]}', id="no argument"),
        pytest.param(envelope(b'{"argv":["a"]},{"argv":["b"]}'), id="two arguments"),
        pytest.param(VALID[0].replace(b'"k":{}', b'"k":{"a":1}'), id="a keyword argument"),
        pytest.param(VALID[0].replace(b'"k":{}', b'"k":[]'), id="keywords that are none"),
    ],
)
def test_any_other_call_is_refused(data: bytes) -> None:
    error = refused(data)

    assert error.path == "$.f"
    assert "one function" in str(error)


@pytest.mark.parametrize("fields", [{"f": "other"}, {"a": ()}, {"a": (1, 2)}, {"k": {"a": 1}}])
def test_any_other_call_is_not_even_sent(fields: dict[str, object]) -> None:
    with pytest.raises(ErrInvalidJob, match="one function"):
        serialize({**call(Job(argv=("true",))), **fields})


@pytest.mark.parametrize("field", ["et", "st", "ft"])
@pytest.mark.parametrize("value", [b"-1", b"9000000000000000000"])
def test_a_time_that_no_calendar_has_is_refused(field: str, value: bytes) -> None:
    key = f'"{field}":'.encode()
    before, after = VALID[1].split(key)
    data = before + key + value + after[len("1767322245000") :]

    assert refused(data).path == f"$.{field}"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"[" * 1_000_000, id="arrays"),
        pytest.param(b'{"v":' * 1_000_000, id="objects"),
        pytest.param(b'{"v":1,"x":%s}' % (b"[" * 100_000 + b"]" * 100_000), id="ignored field"),
        pytest.param(envelope(b"[" * 100_000 + b"]" * 100_000), id="argument"),
        pytest.param(envelope(b'{"argv":["a"],"platform":%s}' % (b"[" * 100_000)), id="host"),
        pytest.param(b'{"v":1,"f":"","et":1,"r":%s}' % (b'{"result":' * 100_000), id="result"),
    ],
)
def test_deep_nesting_is_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"x" * HUNDRED_MEGABYTES, id="garbage"),
        pytest.param(envelope(b'{"argv":["%s"]}' % (b"x" * HUNDRED_MEGABYTES)), id="job"),
        pytest.param(envelope(b"0," * (HUNDRED_MEGABYTES // 2) + b"0"), id="arguments"),
        pytest.param(
            VALID[0].replace(b'"k":{}', b'"k":{%s"":0}' % (b'"":0,' * (HUNDRED_MEGABYTES // 5))),
            id="keyword arguments",
        ),
        pytest.param(b" " * (MAX_RESULT_BYTES + 1), id="more than any result"),
    ],
)
def test_a_huge_payload_is_refused_quickly(data: bytes) -> None:
    start = time.process_time()
    refused(data)

    assert time.process_time() - start < 2


def test_a_huge_job_is_not_even_sent() -> None:
    job = Job(argv=("true",), labels={"note": "x" * (MAX_PAYLOAD_BYTES + 1)})

    with pytest.raises(ErrInvalidJob, match=str(MAX_PAYLOAD_BYTES)):
        encode_job(job)


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": "true"},
        {"argv": ("a", "\ud800")},
        {"limits": Limits(wall_s=-1)},
        {"attempts": 2**70},
        {"image": 5},
        {"stdin": "no base64"},
        {"labels": {"a": object()}},
    ],
)
def test_a_job_that_no_worker_could_read_is_not_even_sent(fields: dict[str, object]) -> None:
    job = msgspec.structs.replace(Job(argv=("true",)))
    for name, value in fields.items():
        msgspec.structs.force_setattr(job, name, value)

    with pytest.raises(ErrInvalidJob):
        serialize(call(job))


@pytest.mark.parametrize("data", [b'{"result":null}', b"{}", b"5", b'{"result":{"outcome":"won"}}'])
def test_an_ending_without_a_result_or_an_error_is_refused(data: bytes) -> None:
    assert refused(b'{"v":1,"f":"execute","et":1,"r":%s}' % data).path.startswith("$.r")


def test_a_job_is_no_result() -> None:
    with pytest.raises(ErrInvalidJob, match="not its result"):
        decode_result(VALID[0])


def test_every_setting_of_the_host_can_be_recognised_on_the_wire() -> None:
    assert set(_WireJob.__struct_fields__) - set(Job.__struct_fields__) == HOST_OWNED_FIELDS


# What version 1 wrote is read for ever: these files must never change.


@pytest.mark.parametrize(
    ("name", "job"),
    [("job-minimal.json", Job(argv=("true",))), ("job-full.json", FULL_JOB)],
)
def test_a_job_of_version_1_is_read(name: str, job: Job) -> None:
    assert deserialize((WIRE / name).read_bytes()) == dict(call(job))


def test_a_result_of_version_1_is_read() -> None:
    assert decode_result((WIRE / "result.json").read_bytes()) == FULL_RESULT


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


def test_a_job_alone_can_be_read_from_part_of_a_buffer() -> None:
    assert decode_job(memoryview(b'xx{"argv":["true"]}')[2:]) == Job(argv=("true",))
