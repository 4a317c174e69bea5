"""What a sandbox's sentry counts, asked over its control socket."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec

_MOST_BYTES = 64 * 1024


class SentryError(Exception):
    """Raised if a sentry answers, but not what was asked."""


class _Usage(msgspec.Struct, rename="pascal"):
    tmpfs: int


class _Reply(msgspec.Struct):
    success: bool = False
    err: str = ""
    result: _Usage | None = None


_DECODER = msgspec.json.Decoder(_Reply)
_REQUEST = msgspec.json.encode({"method": "Usage.Collect", "arg": {"Full": True}})


async def file_bytes(socket: Path, *, within_s: float) -> int | None:
    """Return how many bytes of files the sandbox's memory holds; None if nobody answers.

    It is what ``runsc usage --full`` prints, without a process for it: the pages of
    all tmpfs mounts together, exact at the moment of the answer.

    Args:
        socket: the control socket.
        within_s: seconds the sentry may take.

    Raises:
        SentryError: this runsc does not know the question.
    """
    answer = b""
    try:
        with anyio.fail_after(within_s):
            async with await anyio.connect_unix(socket) as stream:
                await stream.send(_REQUEST)
                while len(answer) < _MOST_BYTES:
                    answer += await stream.receive()
                    # There is no mark at the end but that of JSON itself.
                    if (reply := _decoded(answer)) is not None:
                        break
                else:
                    raise SentryError(f"more than {_MOST_BYTES} bytes")
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        return None  # it has ended, or is not there yet, or takes too long
    if not reply.success or reply.result is None:
        raise SentryError(reply.err or "no result")
    return reply.result.tmpfs


def _decoded(answer: bytes) -> _Reply | None:
    try:
        return _DECODER.decode(answer)
    except msgspec.ValidationError as error:
        raise SentryError(str(error)) from error
    except msgspec.DecodeError:
        return None  # the rest is on its way
