"""Connections to Redis, by URL.

::

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]
    rediss://…                                        the same with TLS
    unix://[USER@]/PATH[?password=PASSWORD]
    sentinel://[[USER]:PASSWORD@]HOST[:PORT],HOST[:PORT]/PRIMARY[?tls=yes]

All take ``db``, ``username``, ``password``, ``client_name``,
``max_connections``, ``socket_timeout``, ``socket_connect_timeout`` and
``health_check_interval`` as ``?name=value``; those to hosts take
``socket_keepalive`` too. Where there is nothing to do, workers and
``Client.results`` ask Redis to answer two seconds later: ``socket_timeout``
(10) is 3 s at least, ``socket_connect_timeout`` (5) 0.1 s. ``max_connections``
(any number) is 8 at least: a worker uses up to six at one time, a client one and
one for each call under way at that moment. A call that finds none raises
:class:`corral.ErrDaemonUnavailable`. ``health_check_interval`` (30) is a
number of seconds, 0 for no checks.

``rediss://``, and ``sentinel://`` with ``tls=yes``, take redis-py's
``ssl_ca_certs``, ``ssl_ca_data``, ``ssl_certfile``, ``ssl_keyfile``,
``ssl_ciphers``, ``ssl_cert_reqs`` and ``ssl_check_hostname``. The server's
certificate and its name are checked unless the last two say otherwise.

``sentinel://`` names the Sentinels, and the primary by the name it has there.
User and password are those of Redis; the Sentinels' own are
``sentinel_username`` and ``sentinel_password``. TLS holds for both. Sentinel
tells addresses, not names, unless it is set to ``resolve-hostnames`` and
``announce-hostnames``: certificates have to be for what it tells.

Anything else is refused. So is what would make redis-py send a command a
second time: only the caller knows whether that does harm.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, cast
from urllib.parse import SplitResult, parse_qs, parse_qsl, unquote, urlsplit

from arq.connections import ArqRedis
from redis.asyncio.connection import AbstractConnection, ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from corral import codec
from corral.errors import ErrClientNotConfigured
from corral.following import (
    PrimaryPool,
    PrimaryTcpConnection,
    PrimaryTlsConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from corral.reaching import reaching

_ANSWER_WITHIN_S: Final = 10.0
_SENTINEL_ANSWERS_WITHIN_S: Final = 2.0
_HEALTH_CHECK_EVERY_S: Final = 30
_SENTINEL_PORT: Final = 26379

_ANY_OPTIONS = frozenset(
    {
        "client_name",
        "db",
        "health_check_interval",
        "max_connections",
        "password",
        "socket_connect_timeout",
        "socket_timeout",
        "username",
    }
)
_LEAST: Mapping[str, tuple[float, str]] = MappingProxyType(
    {
        "health_check_interval": (0, "it is seconds, 0 for no checks"),
        "max_connections": (
            8,
            "a worker uses up to six at one time, a client one and one for each call under way",
        ),
        "socket_connect_timeout": (0.1, "no connection would come about"),
        "socket_timeout": (3, "those who wait for jobs or results have no answer for 2 s"),
    }
)
"""The least of an option with which anything would work, and why."""
_HOST_OPTIONS = frozenset({"socket_keepalive"})
_TLS_OPTIONS = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
    }
)
_SENTINEL_OPTIONS = frozenset({"sentinel_password", "sentinel_username", "tls"})
_YES_OR_NO: Mapping[str, bool] = MappingProxyType(
    {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
)
_NOT_VALID = (
    "not a Redis URL (not shown: it may hold a password); use redis://HOST:PORT/DB,"
    " rediss://HOST:PORT/DB, unix:///PATH or sentinel://HOST:PORT,HOST:PORT/PRIMARY"
)


def connect(url: str) -> ArqRedis:
    """Return arq's Redis client for a URL of any kind.

    Nothing is sent before the first command, and no command is sent twice.
    A server that is no longer the primary is left: the next command goes to
    the one that Sentinel, or the name's address, then tells.

    Raises:
        ErrClientNotConfigured: the URL is of no known kind, has an option that
            is not known or would not do, or names TLS files that cannot be
            used.
    """
    pool, connection = _pool(url)
    if isinstance(connection, TlsConnection):
        try:
            connection.ssl_context.get()
        except (OSError, ValueError) as error:
            raise ErrClientNotConfigured(
                f"the TLS options of the Redis URL cannot be used ({_reason(error)}): check"
                " ssl_ca_certs, ssl_certfile, ssl_keyfile and ssl_ciphers"
            ) from None
    return ArqRedis(pool, job_serializer=codec.serialize, job_deserializer=codec.deserialize)


def check_url(url: str) -> None:
    """Return if :func:`connect` can use the URL. Opens no file.

    Raises:
        ErrClientNotConfigured: it cannot. The message does not quote the URL.
    """
    _pool(url)


async def ping(redis: ArqRedis) -> None:
    """Return if Redis answers.

    Raises:
        ErrDaemonUnavailable: it does not.
    """
    async with reaching(redis):
        await redis.ping()


def _pool(url: str) -> tuple[ConnectionPool, AbstractConnection]:
    """Return the pool, and one of its connections, which is not opened."""
    try:
        parts = urlsplit(url)
        pool = _primary_pool(parts) if parts.scheme == "sentinel" else _plain_pool(parts, url)
        return pool, pool.make_connection()  # type: ignore[no-untyped-call]
    except (KeyError, ValueError, RedisError):
        # Their messages may quote the URL, and with it the password.
        raise ErrClientNotConfigured(_NOT_VALID) from None


def _plain_pool(parts: SplitResult, url: str) -> ConnectionPool:
    connection_class, known, defaults = {
        "redis": (TcpConnection, _HOST_OPTIONS, _of_hosts()),
        "rediss": (TlsConnection, _HOST_OPTIONS | _TLS_OPTIONS, {**_of_hosts(), **_of_tls(parts)}),
        "unix": (UnixConnection, frozenset[str](), {}),
    }[parts.scheme]
    _check_options(parts, known)
    if connection_class is not UnixConnection and parts.port == 0:
        raise ValueError(parts.port)
    options = {**_of_all(), **defaults, **parse_url(url)}
    options.pop("connection_class", None)
    return ConnectionPool(
        connection_class=connection_class,
        max_connections=cast("int | None", options.pop("max_connections", None)),
        **options,
    )


def _primary_pool(parts: SplitResult) -> PrimaryPool:
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    tls = _YES_OR_NO.get(query.get("tls", "no").lower())
    if tls is None:
        raise ErrClientNotConfigured("the option tls of a sentinel URL is yes or no")
    _check_options(parts, _SENTINEL_OPTIONS | _HOST_OPTIONS | (_TLS_OPTIONS if tls else set()))
    credentials, _, hosts = parts.netloc.rpartition("@")
    name = unquote(parts.path.removeprefix("/"))
    if not name or "/" in name:
        raise ValueError(name)
    tls_defaults = _of_tls(parts) if tls else {}
    # So that redis-py's parser reads what is not of Sentinel.
    given = parse_url(parts._replace(scheme="redis", netloc=f"{credentials}@", path="").geturl())
    options: dict[str, object] = {**_of_all(), **_of_hosts(), **tls_defaults, **given}
    for own in (*_SENTINEL_OPTIONS, "connection_class"):
        options.pop(own, None)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        list(_addresses(hosts)),
        sentinel_kwargs={
            **_of_all(),
            **_of_hosts(),
            "socket_timeout": _SENTINEL_ANSWERS_WITHIN_S,
            "socket_connect_timeout": _SENTINEL_ANSWERS_WITHIN_S,
            "username": query.get("sentinel_username"),
            "password": query.get("sentinel_password"),
            "ssl": tls,
            **{key: value for key, value in options.items() if key in _TLS_OPTIONS},
        },
    )
    return PrimaryPool(
        name,
        sentinel,
        connection_class=PrimaryTlsConnection if tls else PrimaryTcpConnection,
        **options,
    )


def _addresses(hosts: str) -> Iterator[tuple[str, int]]:
    for host in hosts.split(","):
        parts = urlsplit(f"//{host}")
        if not parts.hostname or parts.port == 0:
            raise ValueError(host)
        yield unquote(parts.hostname), parts.port or _SENTINEL_PORT


def _check_options(parts: SplitResult, known: frozenset[str]) -> None:
    given = parse_qsl(parts.query, keep_blank_values=True)
    names = [name for name, _ in given]
    unknown = sorted({*names} - _ANY_OPTIONS - known)
    if unknown:
        raise ErrClientNotConfigured(
            f"a {parts.scheme} URL has no option {', '.join(unknown)}; known are"
            f" {', '.join(sorted(_ANY_OPTIONS | known))}"
        )
    # redis-py would take an empty value for none, and the first of two.
    if len({*names}) < len(names) or not all(value for _, value in given):
        raise ErrClientNotConfigured("an option of the Redis URL is empty, or given twice")
    for name, value in given:
        if name not in _LEAST:
            continue
        least, why = _LEAST[name]
        if not least <= float(value) < math.inf:
            raise ErrClientNotConfigured(
                f"{name}={float(value):g} in the Redis URL would not do: {why}; give {least:g} or"
                " more, or leave it out"
            )


def _of_all() -> dict[str, object]:
    return {
        "socket_timeout": _ANSWER_WITHIN_S,
        "socket_connect_timeout": _ANSWER_WITHIN_S / 2,
        "health_check_interval": _HEALTH_CHECK_EVERY_S,
        "retry": Retry(NoBackoff(), 0),
    }


def _of_hosts() -> dict[str, object]:
    # A host that is gone says nothing. The first three find that out on a
    # quiet connection, the last one where something was sent.
    wanted = {
        "TCP_KEEPIDLE": 15,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 30_000,
    }
    options = {
        getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)
    }
    return {"socket_keepalive": True, "socket_keepalive_options": options}


def _of_tls(parts: SplitResult) -> dict[str, object]:
    # Where the certificate does not count, its name cannot.
    unchecked = parse_qs(parts.query).get("ssl_cert_reqs") == ["none"]
    return {"ssl_check_hostname": not unchecked}


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or type(error).__name__
    return getattr(error, "strerror", None) or type(error).__name__
