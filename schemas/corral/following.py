"""Connections that leave a server which is no longer the primary, and a command when told to.

redis-py keeps using a connection whose server has become a replica, unless
that closes it: every write would be refused until the process is restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

_DEMOTED: Final = (
    "MASTERDOWN",  # a replica that has lost its primary
    "UNBLOCKED",  # became a replica during a blocking command
    "NOREPLICAS",  # a primary that is cut off from its replicas: perhaps another took over
)


class NotPrimaryError(RedisConnectionError):
    """The server is not, or no longer, the primary. It did nothing of what it was asked."""


class _Leaving(AbstractConnection):
    """Closes itself once its server says that it is not the primary. Keeps every cancellation."""

    async def read_response(
        self,
        disable_decoding: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        *,
        disconnect_on_error: bool = True,
        push_request: bool | None = False,
    ) -> object:
        try:
            return await super().read_response(
                disable_decoding,
                timeout,
                disconnect_on_error=disconnect_on_error,
                push_request=push_request,
            )
        except ResponseError as error:
            if not (isinstance(error, ReadOnlyError) or str(error).startswith(_DEMOTED)):
                raise
            await self.disconnect(nowait=True)
            raise NotPrimaryError(f"the server is not the primary: {error}") from error

    async def can_read_destructive(self) -> bool:
        # Asked before each command. redis-py's own then waits for no time at all, which takes two
        # turns of the event loop and a cancellation; but what it can find it finds at its first
        # step: bytes, or an end, that have come already.
        looking = super().can_read_destructive()  # type: ignore[no-untyped-call]
        try:
            looking.send(None)
        except StopIteration as found:
            return bool(found.value)
        looking.close()
        return False

    async def send_packed_command(
        self,
        command: bytes | str | Iterable[bytes],
        check_health: bool = True,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> None:
        # redis-py's own uses asyncio.wait_for. Before Python 3.12 that forgets a cancellation
        # which comes just as the command has been sent: a timeout would never come.
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        parts = command.encode() if isinstance(command, str) else command
        writer = self._writer
        if writer is None:
            raise RedisConnectionError("the connection was closed before anything was sent")
        try:
            writer.writelines([parts] if isinstance(parts, bytes) else parts)
            # Most commands are gone by now. If the connection is, the reply will not come.
            if writer.transport.get_write_buffer_size():
                async with asyncio.timeout(self.socket_timeout):
                    await writer.drain()
        except BaseException as error:
            # What was sent of it cannot be told.
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("the server does not read what it is sent") from None
            if isinstance(error, OSError):
                raise RedisConnectionError(f"the connection broke: {error}") from error
            raise

    def abort(self) -> None:
        """Break the connection. The task that uses it, if any, sees it as lost."""
        # disconnect() would pull the streams from under that task.
        if self._writer is not None:
            self._writer.transport.abort()


class TcpConnection(_Leaving, Connection):
    """To one host."""


class TlsConnection(_Leaving, SSLConnection):
    """To one host, with TLS."""


class UnixConnection(_Leaving, UnixDomainSocketConnection):
    """To a socket of this host."""


class PrimaryTcpConnection(SentinelManagedConnection, TcpConnection):
    """To whichever host Sentinel names."""


class PrimaryTlsConnection(SentinelManagedConnection, TlsConnection):
    """To whichever host Sentinel names, with TLS."""


class PrimaryPool(SentinelConnectionPool):
    """Connections to the primary that Sentinel names.

    Each new connection asks Sentinel. Once that names another primary, no
    connection to the earlier one is left, not even those in use: a server that
    hangs would keep them for as long as it hangs.

    Args:
        name: Sentinel's name of the primary.
        sentinel: who is asked. Belongs to the pool.
        connection_class: with or without TLS.
        options: of the connections, as redis-py takes them.
    """

    def __init__(
        self,
        name: str,
        sentinel: Sentinel,
        *,
        connection_class: type[PrimaryTcpConnection | PrimaryTlsConnection],
        **options: object,
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            name, sentinel, connection_class=connection_class, **options
        )
        addresses = [each.connection_pool.connection_kwargs for each in sentinel.sentinels]
        self.place: Final = f"the primary {name} of Sentinel at " + ", ".join(
            f"{address['host']}:{address['port']}" for address in addresses
        )

    async def get_master_address(self) -> tuple[str, int]:
        """Ask Sentinel, and leave an earlier primary.

        Raises:
            RedisError: no Sentinel answers, or none knows a healthy primary.
        """
        address: tuple[str, int] = await super().get_master_address()  # type: ignore[no-untyped-call]
        for connection in self._in_use_connections:
            if isinstance(connection, TcpConnection | TlsConnection) and (
                (connection.host, connection.port) != address
            ):
                connection.abort()
        return address

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002
        """Close the connections; if this is the end, those to the Sentinels too."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose(close_connection_pool=True)
