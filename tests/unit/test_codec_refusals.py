"""The wire format: nothing gets in but what it describes."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - what arq sends without corral's codec
import time
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wire import FULL_JOB, FULL_RESULT, MANY, REJECTED, call, ending, envelope

from corral import ErrInvalidJob, Job, Limits, Result
from corral.codec import MAX_RESULT_BYTES, decode_result, deserialize, serialize
from corral.policy import HOST_OWNED_FIELDS

HUNDRED_MEGABYTES = 100_000_000


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
