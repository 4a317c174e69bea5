"""What is said over a sandbox's control socket, in gVisor's own terms.

The names are those that gVisor's Go types have as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from corral_worker.sandbox.containers import RefusedError


class MountConf(msgspec.Struct, frozen=True, kw_only=True):
    """How gVisor puts a file system together: an EROFS image, nothing over it."""

    upper: int = 0
    lower: int = 2


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The flags of runsc that matter once a sandbox runs, in gVisor's own numbers."""

    file_access_mounts: int = 1
    network: int = 2
    """None but loopback."""
    direct_fs: bool = msgspec.field(default=False, name="DirectFS")
    fd_limit: int = msgspec.field(default=-1, name="FDLimit")
    d_cache: int = -1
    panic_signal: int = -1
    overlay2: dict[str, str] = {}


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """Argument of ``containerManager.CreateSubcontainer``."""

    CID: str


class Start(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Argument of ``containerManager.StartSubcontainer``."""

    spec: Mapping[str, object]
    conf: Config = Config()
    cid: str = msgspec.field(name="CID")
    num_gofer_filestore_fds: int = msgspec.field(default=0, name="NumGoferFilestoreFDs")
    is_dev_io_file_present: bool = False
    gofer_mount_confs: tuple[MountConf, ...] = (MountConf(),)


class Collect(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Argument of ``Usage.Collect``."""

    full: bool = True


Argument = Create | Start | Collect | str


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    arg: Argument


class Usage(msgspec.Struct, rename="pascal"):
    """Result of ``Usage.Collect``: bytes, of which only those of files are of use."""

    tmpfs: Annotated[int, Meta(ge=0)]


class Reply(msgspec.Struct):
    """What comes back for every request."""

    success: bool
    err: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


WaitStatus = Annotated[int, Meta(ge=0, le=0xFFFF)]
"""Result of ``containerManager.Wait``: as of wait(2)."""

_Result = TypeVar("_Result")
_REPLY = msgspec.json.Decoder(Reply)
# Whole escapes only, and none of a surrogate: half of a pair is no text.
_REFUSAL = re.compile(
    rb'\{"success":false,"err":"((?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}){1,4096})'
)
_ENCODER = msgspec.json.Encoder()


def request(method: str, arg: Argument) -> bytes:
    """Return a request as it is sent."""
    return _ENCODER.encode(_Request(method=method, arg=arg))


def reply(answer: bytes | bytearray, method: str) -> Reply | None:
    """Return what was answered; None if that was only a part of it.

    Raises:
        RefusedError: it is no reply.
    """
    try:
        return _REPLY.decode(answer)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(method, f"not a reply: {error}") from error
    except msgspec.DecodeError:
        return None  # a brace in the midst of it


def beginning(answer: bytes | bytearray) -> str:
    """Return what a refusal that is too long to be read says first; nothing if it is none.

    The reason for it stands there. Then comes what it quotes, as much as there may be of that.
    """
    found = _REFUSAL.match(answer)
    if found is None:
        return ""
    words: str = json.loads(b'"%s"' % found[1].decode(errors="replace").encode(), strict=False)
    return words


def result(of: Reply, decoder: msgspec.json.Decoder[_Result], method: str) -> _Result:
    """Return the result in a reply.

    Raises:
        RefusedError: it has none of that type.
    """
    try:
        return decoder.decode(of.result)
    except (ValueError, RecursionError) as error:
        raise RefusedError(method, f"not a result: {error}") from error
