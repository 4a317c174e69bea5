"""The control socket of a running sandbox: what runsc asks of it, without a process for it.

It is gVisor's own interface between ``runsc`` and the sentry, and internal: what is sent
here is what ``runsc usage``, and ``runsc start`` and ``runsc wait`` of a container in a
pod, send. Whoever starts programs with it must have seen it work with the installed
runsc. The socket lies in runsc's state directory on the host; nothing in the guest can
reach it. Who answers may have been taken over by a guest: any answer must do no harm.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, final

import anyio
import anyio.lowlevel
import msgspec

from corral.result import StartWay
from corral_worker.sandbox.bundle import SandboxSpec, oci_config
from corral_worker.sandbox.containers import (
    RefusedError,
    SandboxGoneError,
    SandboxLostError,
    Streams,
)
from corral_worker.sandbox.control_wire import (
    Argument,
    Collect,
    Create,
    Reply,
    Start,
    Usage,
    WaitStatus,
    beginning,
    reply,
    request,
    result,
)

_MOST_BYTES = 64 * 1024
"""Longest reply that is read to its end: errors quote the job's strings, all else is short."""
_WANT = 4096
_AGAIN_AFTER_S = 0.002

_WAIT_STATUS: msgspec.json.Decoder[int] = msgspec.json.Decoder(WaitStatus)
_USAGE = msgspec.json.Decoder(Usage)


@final
class ControlSocket:
    """Starts containers in a sandbox that runs, and asks how they are.

    It is a :class:`~corral_worker.sandbox.containers.Containers`, and raises what is said
    there. In its block a connection is kept for the next call once its answer was read to the
    end: one that was given up cannot be taken for the next one's answer. Outside of the block,
    which nobody need enter, every call opens a connection of its own.

    Args:
        path: the socket.
    """

    way: StartWay = "control_socket"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keeps = False
        self._kept: socket.socket | None = None

    async def __aenter__(self) -> Self:
        """Return the control socket itself."""
        self._keeps = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection that was kept."""
        self._keeps = False
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def create(self, container: str, *, within_s: float) -> None:
        """Announce a container; its id is to be new in this sandbox."""
        await self._call(
            "containerManager.CreateSubcontainer", Create(CID=container), within_s=within_s
        )

    async def start(
        self, container: str, spec: SandboxSpec, *, streams: Streams, within_s: float
    ) -> None:
        """Start a container that was announced: its program runs when this returns."""
        try:
            rootfs = os.open(spec.rootfs, os.O_RDONLY)
        except OSError as error:
            raise SandboxGoneError(f"the image cannot be opened: {error}") from error
        try:
            await self._call(
                "containerManager.StartSubcontainer",
                Start(spec=oci_config(spec), cid=container),
                files=(streams.stdin, streams.stdout, streams.stderr, rootfs),
                within_s=within_s,
            )
        finally:
            os.close(rootfs)

    async def wait(self, container: str, *, within_s: float) -> int:
        """Return the wait status of a container's program when it has ended."""
        method = "containerManager.Wait"
        answer = await self._call(method, container, within_s=within_s)
        return result(answer, _WAIT_STATUS, method)

    def last_words(self, container: str) -> bytes:  # noqa: ARG002 - as for every way
        """Return nothing: nobody but the program writes there."""
        return b""

    async def destroy(self, container: str, *, within_s: float) -> None:
        """End a container and forget it, its file systems included."""
        await self._call("containerManager.DestroySubcontainer", container, within_s=within_s)

    async def file_bytes(self, *, within_s: float) -> int:
        """Return how many bytes of files the sandbox's memory holds.

        It is what ``runsc usage --full`` prints: the pages of all tmpfs mounts
        together, exact at the moment of the answer.

        Raises:
            RefusedError: this runsc does not know the question.
            SandboxLostError: nobody answers.
            TimeoutError: there was no answer in time.
        """
        method = "Usage.Collect"
        answer = await self._call(method, Collect(), within_s=within_s)
        return result(answer, _USAGE, method).tmpfs

    async def _call(
        self, method: str, arg: Argument, *, within_s: float, files: Sequence[int] = ()
    ) -> Reply:
        asked = request(method, arg)
        try:
            with anyio.fail_after(within_s):
                # Not anyio's streams: if one is cancelled at the moment at which it could go on,
                # an error that nobody can catch goes to the event loop.
                with ExitStack() as owned:
                    control = owned.enter_context(await self._connection(method))
                    await _send(control, asked, files, method)
                    answer = await _receive(control, method)
                    if self._keeps and self._kept is None:
                        owned.pop_all()
                        self._kept = control
        except TimeoutError:
            raise TimeoutError(f"{method}: no answer within {within_s:g} s") from None
        except (OSError, EOFError) as error:
            raise SandboxLostError(f"{method}: nobody answers: {error}") from error
        if not answer.success:
            raise RefusedError(method, answer.err or "refused without a word")
        return answer

    async def _connection(self, method: str) -> socket.socket:
        kept, self._kept = self._kept, None
        if kept is not None:
            return kept
        with ExitStack() as owned:
            control = owned.enter_context(socket.socket(socket.AF_UNIX))
            control.setblocking(False)
            while True:
                try:
                    control.connect(str(self._path))
                except BlockingIOError:
                    # As many wait to be accepted as there may: nothing tells when there are fewer.
                    await anyio.sleep(_AGAIN_AFTER_S)
                except OSError as error:
                    raise SandboxGoneError(f"{method}: nobody listens: {error}") from error
                else:
                    owned.pop_all()
                    return control


async def _send(control: socket.socket, asked: bytes, files: Sequence[int], method: str) -> None:
    # The descriptors belong to the first byte that arrives: one is enough to carry them, and
    # of more the kernel might take only a part.
    first = 1 if files else 0
    rest = memoryview(asked)[first:]
    while first or rest:
        try:
            if first:
                first -= socket.send_fds(control, [asked[:1]], list(files))
            else:
                rest = rest[control.send(rest) :]
        except BlockingIOError:
            await anyio.wait_writable(control)
        except OSError as error:
            # Of what was not asked to its end nothing is done.
            raise SandboxGoneError(f"{method}: nobody listens: {error}") from error


async def _receive(control: socket.socket, method: str) -> Reply:
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
        if answer.endswith((b"}", b"}\n")) and (found := reply(answer, method)):
            return found
        if len(answer) > _MOST_BYTES:
            said = beginning(answer)
            raise RefusedError(method, said or f"a reply of more than {_MOST_BYTES} bytes")
        await anyio.lowlevel.checkpoint()
