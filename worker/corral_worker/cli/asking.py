"""Asking Redis on an operator's behalf, and failing as every such command does."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn, TypeVar

import anyio
import click
from arq.connections import ArqRedis

from corral import CorralError, ErrClientNotConfigured, ErrInvalidJob
from corral.client import REDIS_URL_VARIABLE
from corral.connection import connect
from corral_worker.cli.report import error_lines
from corral_worker.cli.text import printable

T = TypeVar("T")

_FAILED = 1
_CLOSE_WITHIN_S = 5.0


def finish(work: Callable[[], Awaitable[T]]) -> T:
    """Return what ``work`` returns; an error of corral's is told on stderr and ends the process."""
    try:
        return anyio.run(work)
    except CorralError as error:
        fail(error)
    except UnicodeEncodeError:
        fail(ErrInvalidJob("an argument is not UTF-8, and so is no name or id"))


def fail(error: CorralError) -> NoReturn:
    """Tell an error on stderr and exit with 1."""
    for line in error_lines(error):
        click.echo(f"corral: {printable(line)}", err=True)
    sys.exit(_FAILED)


@asynccontextmanager
async def operators_redis() -> AsyncIterator[ArqRedis]:
    """Yield a client of the Redis that CORRAL_REDIS_URL names.

    Raises:
        ErrClientNotConfigured: it names none.
    """
    url = os.environ.get(REDIS_URL_VARIABLE)
    if not url:
        raise ErrClientNotConfigured(
            f"no Redis is configured: set {REDIS_URL_VARIABLE} to the one of the workers,"
            " for example redis://127.0.0.1:6379/0"
        )
    redis = connect(url)
    try:
        yield redis
    finally:
        with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True):
            await redis.aclose(close_connection_pool=True)
