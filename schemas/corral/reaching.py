"""Turns what redis-py raises into corral's errors."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    OutOfMemoryError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from corral.errors import ErrDaemonUnavailable, Fault, RetrySafety
from corral.following import NotPrimaryError, PrimaryPool


@asynccontextmanager
async def reaching(
    redis: Redis, *, retry_safety: RetrySafety = "not_started"
) -> AsyncIterator[None]:
    """Name Redis, without its password, if it fails within the block.

    Raises:
        ErrDaemonUnavailable: Redis does not answer, or is full.
        Fault: Redis refused a command.
    """
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        if _is_stranger(error):
            raise ErrDaemonUnavailable(
                f"Redis at {_place(redis)} does not let us in: check the user and the password in"
                " CORRAL_REDIS_URL"
            ) from error
        refused = isinstance(error, NotPrimaryError)
        raise ErrDaemonUnavailable(
            f"Redis at {_place(redis)} does not answer ({_why(error)}): is it running, and is"
            " CORRAL_REDIS_URL right?",
            retry_safety="not_started" if refused else retry_safety,
        ) from error
    except OutOfMemoryError as error:
        # Said before anything is written.
        raise ErrDaemonUnavailable(
            f"Redis at {_place(redis)} is full, it uses all of its maxmemory: nothing was queued or"
            " changed; try again when there is room, as jobs end and results expire, or give it"
            " more memory",
            context={"reason": "full"},
        ) from error
    except RedisError as error:
        raise Fault(f"Redis refused a command: {error}", retry_safety=retry_safety) from error


def _place(redis: Redis) -> str:
    pool = redis.connection_pool
    if isinstance(pool, PrimaryPool):
        return pool.place
    options = pool.connection_kwargs
    host = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return str(options.get("path") or host)


def _why(error: Exception) -> str:
    if isinstance(tls := error.__context__, ssl.SSLError):
        return f"TLS: {getattr(tls, 'verify_message', '') or tls.reason}"
    return type(error).__name__


def _is_stranger(error: BaseException | None) -> bool:
    # On Unix sockets redis-py hides it behind an error of the connection.
    while error is not None and not isinstance(error, AuthenticationError | AuthorizationError):
        error = error.__cause__ or error.__context__
    return error is not None
