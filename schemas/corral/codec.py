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

from collections.abc import Mapping
from typing import Annotated, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from corral.ending_codec import decode_ending, to_ending
from corral.errors import CorralError, ErrInvalidJob
from corral.job_codec import decode_job, encode_job
from corral.keys import FUNCTION
from corral.malformed import check_size, malformed
from corral.result import JobCancelled, Outcome, Result

VERSION = 1
"""Version of the envelope that this release reads and writes."""
MAX_RESULT_BYTES = 192 * 1024 * 1024
"""Most bytes an encoded result may take: two streams at their highest ceiling, as base64."""

Decoded = dict[str, object]
"""arq's dict of a job or a result."""

_Milliseconds = Annotated[int, Meta(ge=0, le=2**47)]
"""Beyond that datetime fails, and a stock arq worker with it."""


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


class _NoKeywords(msgspec.Struct, forbid_unknown_fields=True):
    """The keyword arguments of a call: none."""


class _Version(msgspec.Struct):
    v: Annotated[int, Meta(ge=1)]


_version = msgspec.json.Decoder(_Version)
_envelope = msgspec.json.Decoder(_Envelope)
_arguments = msgspec.json.Decoder(tuple[msgspec.Raw])
_keywords = msgspec.json.Decoder(_NoKeywords)
_encoder = msgspec.json.Encoder()


def deserialize(data: bytes) -> Decoded:
    """Return arq's dict of a job or a result; the deserializer for arq.

    Raises:
        ErrInvalidJob: ``data`` is anything else.
    """
    check_size(data, MAX_RESULT_BYTES)
    envelope = _open(data)
    if envelope.r is UNSET:
        return {
            "t": envelope.t,
            "f": envelope.f,
            "a": (decode_job(memoryview(_argument(envelope))),),
            "k": {},
            "et": envelope.et,
        }
    ending = decode_ending(envelope.r)
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
    """Return the result of a job, from what stands in Redis as that.

    Raises:
        CorralError: the job ended in an error, which is raised.
        ErrInvalidJob: ``data`` is anything else.
    """
    decoded = deserialize(data).get("r")
    if isinstance(decoded, JobCancelled):
        return decoded.result
    if isinstance(decoded, CorralError):
        raise decoded
    if isinstance(decoded, Result):
        return decoded
    raise ErrInvalidJob("this is a job, not its result", path="$.r")


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
                "r": to_ending(fields["r"]),
            }
        )
    arguments = cast("tuple[object, ...]", fields["a"])
    if fields["f"] != FUNCTION or len(arguments) != 1 or fields["k"]:
        raise _wrong_call()
    (job,) = arguments
    return _encoder.encode({**fields, "v": VERSION, "a": (msgspec.Raw(encode_job(job)),)})


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
        raise malformed(error) from error
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


def _known(value: int | UnsetType) -> int:
    return 0 if value is UNSET else value
