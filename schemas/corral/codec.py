"""The wire format: what stands in Redis.

arq hands its serializer a dict and wants bytes, and the other way round.
:func:`serialize` and :func:`deserialize` are that pair, for stock arq too::

    pool = await arq.create_pool(
        settings, job_serializer=serialize, job_deserializer=deserialize
    )

An envelope is arq's own fields as JSON, with the version of this format
beside them. Nothing is imported by name and pickle is refused.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, cast

import msgspec
from arq.worker import JobExecutionFailed
from msgspec import UNSET, Meta, UnsetType

from corral.errors import CorralError, ErrInvalidJob, ErrorData
from corral.job import Job
from corral.keys import FUNCTION
from corral.policy import HOST_OWNED_FIELDS
from corral.result import JobCancelled, Outcome, Result

VERSION = 1
"""Version of the envelope that this release reads and writes."""
MAX_PAYLOAD_BYTES = 32 * 1024 * 1024
"""Most bytes an encoded job may take."""
MAX_RESULT_BYTES = 192 * 1024 * 1024
"""Most bytes an encoded result may take: two streams at their highest ceiling, as base64."""

Decoded = dict[str, object]
"""arq's dict of a job or a result."""

_Milliseconds = Annotated[int, Meta(ge=0, le=2**47)]
# Beyond that datetime fails, and a stock arq worker with it.
_SHOWN = 200
_PLACE = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`\Z")


class _Envelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    """arq's fields (``arq/jobs.py``), and ours: ``v``. Results have those from ``s`` on."""

    v: Annotated[int, Meta(ge=1)]
    f: str
    et: _Milliseconds
    t: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    a: msgspec.Raw = msgspec.Raw(b"[]")
    k: msgspec.Raw = msgspec.Raw(b"{}")
    s: bool | UnsetType = UNSET
    r: msgspec.Raw | UnsetType = UNSET
    st: _Milliseconds | UnsetType = UNSET
    ft: _Milliseconds | UnsetType = UNSET
    q: str | UnsetType = UNSET
    id: str | UnsetType = UNSET


class _Ending(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Either of the two ways a job can end."""

    result: Result | None = None
    error: ErrorData | None = None


class _WireJob(Job, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job that may name settings of the host, so that the policy can refuse them by name."""

    runsc_path: msgspec.Raw | UnsetType = UNSET
    root_dir: msgspec.Raw | UnsetType = UNSET
    platform: msgspec.Raw | UnsetType = UNSET
    runsc_flags: msgspec.Raw | UnsetType = UNSET


class _NoKeywords(msgspec.Struct, forbid_unknown_fields=True):
    """The keyword arguments of a call: none."""


class _Version(msgspec.Struct):
    v: Annotated[int, Meta(ge=1)]


_version = msgspec.json.Decoder(_Version)
_envelope = msgspec.json.Decoder(_Envelope)
_ending = msgspec.json.Decoder(_Ending)
_job = msgspec.json.Decoder(Job)
_wire_job = msgspec.json.Decoder(_WireJob)
_arguments = msgspec.json.Decoder(tuple[msgspec.Raw])
_keywords = msgspec.json.Decoder(_NoKeywords)
_encoder = msgspec.json.Encoder()


def encode_job(job: Job) -> bytes:
    """Return a job as JSON.

    Raises:
        ErrInvalidJob: it does not decode again, or is too large.
    """
    try:
        data = _encoder.encode(job)
    except (TypeError, ValueError, RecursionError) as error:
        raise ErrInvalidJob(f"the job cannot be written as JSON: {error}") from error
    decode_job(data)
    return data


def decode_job(data: bytes | memoryview) -> Job:
    """Return the job that ``data`` holds.

    Settings of the host among its fields are moved to ``host_settings``, where
    the policy refuses them by name.

    Raises:
        ErrInvalidJob: it is not a job, with the path of the offending field.
    """
    _check_size(data, MAX_PAYLOAD_BYTES)
    try:
        return _job.decode(data)
    except (ValueError, RecursionError):
        pass  # it is no job, or one that names settings of the host
    try:
        wire = _wire_job.decode(data)
    except (ValueError, RecursionError) as error:
        raise _invalid(error) from error
    fields = {name: getattr(wire, name) for name in Job.__struct_fields__}
    if found := [name for name in sorted(HOST_OWNED_FIELDS) if getattr(wire, name) is not UNSET]:
        fields["host_settings"] = dict.fromkeys(found, "set")
    return Job(**fields)


def deserialize(data: bytes) -> Decoded:
    """Return arq's dict of a job or a result; the deserializer for arq.

    Raises:
        ErrInvalidJob: ``data`` is anything else.
    """
    _check_size(data, MAX_RESULT_BYTES)
    envelope = _open(data)
    if envelope.r is UNSET:
        return {
            "t": envelope.t,
            "f": envelope.f,
            "a": (decode_job(memoryview(_argument(envelope))),),
            "k": {},
            "et": envelope.et,
        }
    ending = _decode_ending(envelope.r)
    return {
        "t": envelope.t,
        "f": envelope.f,
        "a": (),
        "k": {},
        "et": envelope.et,
        "s": isinstance(ending, Result) and ending.outcome is not Outcome.CANCELLED,
        "r": JobCancelled(ending)
        if isinstance(ending, Result) and ending.outcome is Outcome.CANCELLED
        else ending,
        "st": _known(envelope.st),
        "ft": _known(envelope.ft),
        "q": "" if envelope.q is UNSET else envelope.q,
        "id": "" if envelope.id is UNSET else envelope.id,
    }


def decode_result(data: bytes) -> Result:
    """Return the result that an encoded ending holds.

    Raises:
        CorralError: the ending is an error, which is raised.
        ErrInvalidJob: ``data`` is not the ending of a job.
    """
    decoded = deserialize(data).get("r")
    if isinstance(decoded, JobCancelled):
        return decoded.result
    if isinstance(decoded, CorralError):
        raise decoded
    if isinstance(decoded, Result):
        return decoded
    raise ErrInvalidJob("this is a job, not its result", path="$.r")


def encode_ending(value: object) -> bytes:
    """Return the ending alone, as it stands in a result: a :class:`Result` or an exception."""
    return _encoder.encode(_to_ending(value))


def serialize(fields: Mapping[str, object]) -> bytes:
    """Return arq's dict of a job or a result as bytes; the serializer for arq.

    The arguments of a job are left out of its result: they can be large, and
    they are the tenant's.

    Raises:
        ErrInvalidJob: a job that this release could not read again.
    """
    if "r" in fields:
        return _encoder.encode(
            {
                **fields,
                "v": VERSION,
                "a": (),
                "k": {},
                "r": _to_ending(fields["r"]),
            }
        )
    arguments = cast("tuple[object, ...]", fields["a"])
    if fields["f"] != FUNCTION or len(arguments) != 1 or fields["k"]:
        raise _wrong_call()
    (job,) = arguments
    encoded = encode_job(job) if isinstance(job, Job) else _encode_plain(job)
    return _encoder.encode({**fields, "v": VERSION, "a": (msgspec.Raw(encoded),)})


def _argument(envelope: _Envelope) -> msgspec.Raw:
    try:
        (argument,) = _arguments.decode(envelope.a)
        _keywords.decode(envelope.k)
    except (ValueError, RecursionError) as error:
        raise _wrong_call() from error
    if envelope.f != FUNCTION:
        raise _wrong_call()
    return argument


def _wrong_call() -> ErrInvalidJob:
    return ErrInvalidJob(
        f"corral runs one function, {FUNCTION!r}, with one argument, the job", path="$.f"
    )


def _encode_plain(job: object) -> bytes:
    try:
        data = _encoder.encode(job)
    except (TypeError, ValueError, RecursionError) as error:
        raise ErrInvalidJob(f"the job cannot be written as JSON: {error}") from error
    decode_job(data)
    return data


def _to_ending(value: object) -> _Ending:
    if isinstance(value, Result):
        return _Ending(result=value)
    if isinstance(value, JobCancelled):
        return _Ending(result=value.result)
    if isinstance(value, asyncio.CancelledError):
        return _Ending(result=Result(outcome=Outcome.CANCELLED))
    cause: object = value
    while isinstance(cause, BaseException):
        if isinstance(cause, CorralError):
            return _Ending(error=cause.to_data())
        if isinstance(cause, JobExecutionFailed):
            return _fault("job_execution_failed", str(cause))
        cause = cause.__cause__
    # The text of a stranger's exception may hold paths or data of the host.
    return _fault("internal", f"the worker failed with {type(value).__name__}: see its log")


def _fault(code: str, message: str) -> _Ending:
    return _Ending(
        error=ErrorData(code=code, message=message, kind="fault", retry_safety="unknown")
    )


def _decode_ending(data: msgspec.Raw) -> Result | CorralError:
    try:
        ending = _ending.decode(data)
    except (ValueError, RecursionError) as error:
        raise _invalid(error, "$.r") from error
    if ending.error is not None:
        return CorralError.from_data(ending.error)
    if ending.result is not None:
        return ending.result
    raise ErrInvalidJob("the ending holds neither a result nor an error", path="$.r")


def _open(data: bytes) -> _Envelope:
    try:
        envelope = _envelope.decode(data)
    except (ValueError, RecursionError) as error:
        _check_version(_version_of(data))
        if data[:1] == b"\x80":
            raise ErrInvalidJob(
                "this is a pickle, which corral refuses: give arq"
                " job_serializer=corral.codec.serialize and"
                " job_deserializer=corral.codec.deserialize"
            ) from error
        raise _invalid(error) from error
    _check_version(envelope.v)
    return envelope


def _version_of(data: bytes) -> int:
    """Return the version of an envelope that cannot be read; ours if that cannot be either."""
    try:
        return _version.decode(data).v
    except (ValueError, RecursionError):
        return VERSION


def _check_version(version: int) -> None:
    if version > VERSION:
        raise ErrInvalidJob(
            f"the envelope has version {version}, this release reads up to {VERSION}:"
            " upgrade the older side first",
            path="$.v",
        )


def _check_size(data: bytes | memoryview, most: int) -> None:
    if len(data) > most:
        raise ErrInvalidJob(f"the payload has {len(data)} bytes, at most {most} are accepted")


def _known(value: int | UnsetType) -> int:
    return 0 if value is UNSET else value


def _invalid(error: Exception, root: str = "$") -> ErrInvalidJob:
    match = _PLACE.search(str(error))
    message, path = (str(error)[: match.start()], match["path"]) if match else (str(error), "")
    # msgspec gives the path of the object that holds the unknown field. Its
    # name is the sender's, as long as the payload allows.
    field = message.removeprefix("Object contains unknown field `")
    if field != message:
        path = f"{path}.{field.rstrip('`')}"
    return ErrInvalidJob(f"malformed: {message[:_SHOWN]}", path=f"{root}{path}"[:_SHOWN])
