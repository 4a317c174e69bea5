"""The ending of a job as JSON: what stands in an envelope as the call's result."""

from __future__ import annotations

import asyncio

import msgspec
from arq.worker import JobExecutionFailed

from corral.errors import CorralError, ErrInvalidJob, ErrorData
from corral.malformed import malformed
from corral.result import JobCancelled, Outcome, Result


class Ending(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Either of the two ways a job can end."""

    result: Result | None = None
    error: ErrorData | None = None


_ending = msgspec.json.Decoder(Ending)
_encoder = msgspec.json.Encoder()


def to_ending(value: object) -> Ending:
    """Return how a job ended, a :class:`Result` or an exception, as what crosses the wire.

    Of a stranger's exception nothing does but its type.
    """
    if isinstance(value, Result):
        return Ending(result=value)
    if isinstance(value, JobCancelled):
        return Ending(result=value.result)
    if isinstance(value, asyncio.CancelledError):
        return Ending(result=Result(outcome=Outcome.CANCELLED))
    cause: object = value
    while isinstance(cause, BaseException):
        if isinstance(cause, CorralError):
            return Ending(error=cause.to_data())
        if isinstance(cause, JobExecutionFailed):
            return _fault("job_execution_failed", str(cause))
        cause = cause.__cause__
    # The text of a stranger's exception may hold paths or data of the host.
    return _fault("internal", f"the worker failed with {type(value).__name__}: see its log")


def encode_ending(value: object) -> bytes:
    """Return how a job ended, a :class:`Result` or an exception, as JSON."""
    return _encoder.encode(to_ending(value))


def decode_ending(data: bytes | msgspec.Raw) -> Result | CorralError:
    """Return how a job ended.

    Raises:
        ErrInvalidJob: ``data`` is no ending, with the path of the offending field.
    """
    try:
        ending = _ending.decode(data)
    except (ValueError, RecursionError) as error:
        raise malformed(error, "$.r") from error
    if ending.error is not None:
        return CorralError.from_data(ending.error)
    if ending.result is not None:
        return ending.result
    raise ErrInvalidJob("the ending holds neither a result nor an error", path="$.r")


def _fault(code: str, message: str) -> Ending:
    return Ending(error=ErrorData(code=code, message=message, kind="fault", retry_safety="unknown"))
