"""The control socket of a running sandbox: what runsc asks of it, without a process for it.

It is gVisor's own interface between ``runsc`` and the sentry, and internal: what is sent
here is what ``runsc usage``, and ``runsc start`` and ``runsc wait`` of a container in a
pod, send. Whoever starts programs with it must have seen it work with the installed
runsc. The socket lies in runsc's state directory on the host; nothing in the guest can
reach it. Who answers may have been taken over by a guest: any answer must do no harm.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
import anyio.lowlevel
import msgspec
from msgspec import Meta

_MOST_BYTES = 64 * 1024
"""Longest reply: errors quote the job's strings, all else is short."""
_WANT = 4096
_AGAIN_AFTER_S = 0.002


class ControlError(Exception):
    """Raised if a sandbox answers, but not as asked.

    Attributes:
        words: what it said.
    """

    def __init__(self, method: str, words: str) -> None:
        super().__init__(f"{method}: {words}")
        self.words = words


class ControlLostError(Exception):
    """Raised if nobody answers any more: the sandbox has ended, or was never there."""


class ControlAbsentError(ControlLostError):
    """Raised if nobody listens: nothing was asked."""


class Streams(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors that become a program's own; the caller keeps its copies."""

    stdin: int
    stdout: int
    stderr: int


class _MountConf(msgspec.Struct, frozen=True, kw_only=True):
    """How gVisor puts a file system together: an EROFS image, nothing over it."""

    upper: int = 0
    lower: int = 2


class _Config(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The flags of runsc that matter once a sandbox runs, in gVisor's own numbers."""

    file_access_mounts: int = 1
    network: int = 2
    """None but loopback."""
    direct_fs: bool = msgspec.field(default=False, name="DirectFS")
    fd_limit: int = msgspec.field(default=-1, name="FDLimit")
    d_cache: int = -1
    panic_signal: int = -1
    overlay2: dict[str, str] = {}


class _Create(msgspec.Struct, frozen=True, kw_only=True):
    CID: str


class _Start(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    spec: Mapping[str, object]
    conf: _Config = _Config()
    cid: str = msgspec.field(name="CID")
    num_gofer_filestore_fds: int = msgspec.field(default=0, name="NumGoferFilestoreFDs")
    is_dev_io_file_present: bool = False
    gofer_mount_confs: tuple[_MountConf, ...] = (_MountConf(),)


class _Collect(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    full: bool = True


_Argument = _Create | _Start | _Collect | str


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    arg: _Argument


class _Usage(msgspec.Struct, rename="pascal"):
    tmpfs: Annotated[int, Meta(ge=0)]


class _Reply(msgspec.Struct):
    success: bool
    err: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


_Result = TypeVar("_Result")
_REPLY = msgspec.json.Decoder(_Reply)
_WAIT_STATUS: msgspec.json.Decoder[int] = msgspec.json.Decoder(
    Annotated[int, Meta(ge=0, le=0xFFFF)]
)
_USAGE = msgspec.json.Decoder(_Usage)
_ENCODER = msgspec.json.Encoder()


class ControlSocket:
    """Starts containers in a sandbox that runs, and asks how they are.

    Every call opens a connection of its own, so that one which was given up
    cannot be taken for the next one's answer.

    Args:
        path: the socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def create(self, container: str, *, within_s: float) -> None:
        """Announce a container; its id is to be new in this sandbox.

        Raises:
            ControlError: the sandbox refuses.
            ControlLostError: nobody answers.
            TimeoutError: there was no answer in time.
        """
        await self._call(
            "containerManager.CreateSubcontainer", _Create(CID=container), within_s=within_s
        )

    async def start(
        self,
        container: str,
        config: Mapping[str, object],
        *,
        rootfs: int,
        streams: Streams,
        within_s: float,
    ) -> None:
        """Start a container that was announced: its program runs when this returns.

        After a :class:`ControlLostError` or a :class:`TimeoutError` it may run as well.

        Args:
            container: its id.
            config: its OCI configuration.
            rootfs: descriptor of its EROFS image, open for reading.
            streams: descriptors of its program.
            within_s: seconds it may take.

        Raises:
            ControlError: there is no such program or directory, or the like.
            ControlLostError: nobody answers.
            TimeoutError: there was no answer in time.
        """
        await self._call(
            "containerManager.StartSubcontainer",
            _Start(spec=config, cid=container),
            files=(streams.stdin, streams.stdout, streams.stderr, rootfs),
            within_s=within_s,
        )

    async def wait(self, container: str, *, within_s: float) -> int:
        """Return the wait status of a container's program when it has ended.

        Raises:
            ControlError: there is no such container.
            ControlLostError: the sandbox ended first.
            TimeoutError: it has not ended in time.
        """
        method = "containerManager.Wait"
        reply = await self._call(method, container, within_s=within_s)
        return _result(reply, _WAIT_STATUS, method)

    async def destroy(self, container: str, *, within_s: float) -> None:
        """End a container and forget it, its file systems included.

        Raises:
            ControlError: there is no such container.
            ControlLostError: nobody answers.
            TimeoutError: there was no answer in time.
        """
        await self._call("containerManager.DestroySubcontainer", container, within_s=within_s)

    async def file_bytes(self, *, within_s: float) -> int:
        """Return how many bytes of files the sandbox's memory holds.

        It is what ``runsc usage --full`` prints: the pages of all tmpfs mounts
        together, exact at the moment of the answer.

        Raises:
            ControlError: this runsc does not know the question.
            ControlLostError: nobody answers.
            TimeoutError: there was no answer in time.
        """
        method = "Usage.Collect"
        return _result(
            await self._call(method, _Collect(), within_s=within_s), _USAGE, method
        ).tmpfs

    async def _call(
        self,
        method: str,
        arg: _Argument,
        *,
        within_s: float,
        files: Sequence[int] = (),
    ) -> _Reply:
        request = _ENCODER.encode(_Request(method=method, arg=arg))
        try:
            with anyio.fail_after(within_s):
                # Not anyio's streams: if one is cancelled at the moment at which it could go on,
                # an error that nobody can catch goes to the event loop.
                with socket.socket(socket.AF_UNIX) as control:
                    control.setblocking(False)
                    await self._connect(control, method)
                    await _send(control, request, files)
                    reply = await _receive(control, method)
        except TimeoutError:
            raise TimeoutError(f"{method}: no answer within {within_s:g} s") from None
        except (OSError, EOFError) as error:
            raise ControlLostError(f"{method}: nobody answers: {error}") from error
        if not reply.success:
            raise ControlError(method, reply.err or "refused without a word")
        return reply

    async def _connect(self, control: socket.socket, method: str) -> None:
        while True:
            try:
                control.connect(str(self._path))
            except BlockingIOError:
                # As many wait to be accepted as there may: nothing tells when there are fewer.
                await anyio.sleep(_AGAIN_AFTER_S)
            except OSError as error:
                raise ControlAbsentError(f"{method}: nobody listens: {error}") from error
            else:
                return


async def _send(control: socket.socket, request: bytes, files: Sequence[int]) -> None:
    # The descriptors belong to the first byte that arrives: one is enough to carry them, and
    # of more the kernel might take only a part.
    first = 1 if files else 0
    while first:
        try:
            first -= socket.send_fds(control, [request[:1]], list(files))
        except BlockingIOError:
            await anyio.wait_writable(control)
    rest = memoryview(request)[1 if files else 0 :]
    while rest:
        try:
            rest = rest[control.send(rest) :]
        except BlockingIOError:
            await anyio.wait_writable(control)


async def _receive(control: socket.socket, method: str) -> _Reply:
    answer = bytearray()
    while True:
        try:
            part = control.recv(_WANT)
        except BlockingIOError:
            await anyio.wait_readable(control)
            continue
        if not part:
            raise EOFError("it hung up")
        answer += part
        # There is no mark at a reply's end but that of JSON itself.
        if answer.endswith((b"}", b"}\n")) and (reply := _reply(answer, method)):
            return reply
        if len(answer) > _MOST_BYTES:
            raise ControlError(method, f"a reply of more than {_MOST_BYTES} bytes")
        await anyio.lowlevel.checkpoint()


def _reply(answer: bytes | bytearray, method: str) -> _Reply | None:
    """Return what was answered; None if that was only a part of it.

    Raises:
        ControlError: it is no reply.
    """
    try:
        return _REPLY.decode(answer)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(method, f"not a reply: {error}") from error
    except msgspec.DecodeError:
        return None  # a brace in the midst of it


def _result(reply: _Reply, decoder: msgspec.json.Decoder[_Result], method: str) -> _Result:
    try:
        return decoder.decode(reply.result)
    except (ValueError, RecursionError) as error:
        raise ControlError(method, f"not a result: {error}") from error
