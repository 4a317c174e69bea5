"""Things on the host that no sandbox may see or touch, set out to be found."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import anyio.to_thread

from corral_worker.process.call import PATH
from corral_worker.process.child import ChildProcess, child_process
from corral_worker.prove.attack import Scene
from corral_worker.reaper.temporary import TemporaryDirectories

_LIVES = "86400"
_STEP_S = 0.5
_READ_BYTES = 4096


class Lures:
    """Lures that are out. Made by :func:`lures`, which takes them in again.

    - a directory that all users may enter, with a file that holds the secret
      and a program that prints it;
    - an environment variable of this process with the secret;
    - listeners on the host's loopback, on an abstract Unix socket, and on one
      in the directory;
    - a process.
    """

    def __init__(
        self, scene: Scene, listeners: tuple[socket.socket, ...], process: ChildProcess
    ) -> None:
        self.scene = scene
        self._listeners = listeners
        self._process = process
        self._listing = _listing(Path(scene.directory))
        self._clock = _clock()

    def harm(self) -> tuple[str, ...]:
        """Return what was done to the lures so far. Does not block for long."""
        return tuple(self._harm())

    def _harm(self) -> Iterator[str]:
        for listener in self._listeners:
            if _was_contacted(listener):
                yield f"the host's {listener.getsockname()!r} was reached"
        if _listing(Path(self.scene.directory)) != self._listing:
            yield "files of the host were changed"
        if not Path(f"/proc/{self._process.pid}/exe").exists():
            yield "a process of the host was killed"
        if abs(_clock() - self._clock) > _STEP_S:
            yield "the host's clock was set"


@asynccontextmanager
async def lures(*, slowness: float) -> AsyncIterator[Lures]:
    """Set lures out, and take them in at the end.

    Raises:
        OSError: this host does not let us.
    """
    secret, name = secrets.token_hex(16), f"corral-lure-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectories().make())
        await anyio.to_thread.run_sync(_furnish, directory, secret)
        stack.enter_context(_environment("HOST_LURE", secret))
        listeners = _listen(stack, directory, name)
        async with child_process(
            # It is not to outlive a prover that is killed.
            ["setpriv", "--pdeathsig", "KILL", "--", "sleep", _LIVES],
            env={"PATH": PATH, "HOST_LURE": secret},
            stdin=-3,
            stdout=-3,
            stderr=-3,
        ) as process:
            scene = Scene(
                secret=secret,
                variable="HOST_LURE",
                directory=str(directory),
                port=listeners[0].getsockname()[1],
                abstract=name,
                process=process.pid,
                slowness=slowness,
            )
            yield Lures(scene, listeners, process)


def _furnish(directory: Path, secret: str) -> None:
    # Where a sandbox has a directory of the same name, and readable by all: that it
    # is not there is to be what protects it.
    directory.chmod(0o777)
    (directory / "secret").write_text(secret)
    (directory / "secret").chmod(0o666)
    (directory / "program").write_text(f"#!/bin/sh\necho {secret}\n")
    (directory / "program").chmod(0o777)


def _listing(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return what a directory holds, with modes, owners, sizes and the contents of small files.

    All users may write there: neither is a link followed, nor read what is large.
    """
    found = {str(path): path.lstat() for path in sorted(directory.rglob("*"))}
    return {
        path: (
            seen.st_mode,
            seen.st_uid,
            seen.st_size,
            _beginning(path) if stat.S_ISREG(seen.st_mode) else b"",
        )
        for path, seen in found.items()
    }


def _beginning(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _listen(stack: ExitStack, directory: Path, name: str) -> tuple[socket.socket, ...]:
    tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind(tcp.getsockname())
    made = [tcp, udp]
    for address in (f"\0{name}", str(directory / "socket")):
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(address)
        unix.listen()
        made.append(unix)
    (directory / "socket").chmod(0o777)
    for listener in made:
        listener.setblocking(False)
    return tuple(made)


def _was_contacted(listener: socket.socket) -> bool:
    try:
        if listener.type == socket.SOCK_DGRAM:
            listener.recv(1)
        else:
            listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _clock() -> float:
    """Return how far the wall clock is ahead of one that cannot be set."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
