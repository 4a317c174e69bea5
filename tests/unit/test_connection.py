"""URLs of Redis: what each kind means, and what is refused without being quoted."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from arq.connections import ArqRedis

from corral import ErrClientNotConfigured, ErrDaemonUnavailable
from corral.connection import check_url, connect, ping
from corral.following import (
    PrimaryPool,
    PrimaryTcpConnection,
    PrimaryTlsConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)

FLEET = "sentinel://app:s3cret@one:1,two,[::1]:3/queue?db=2&sentinel_password=s3%2Bcret"


def _options(redis: ArqRedis) -> dict[str, object]:
    return dict(redis.connection_pool.connection_kwargs)


def _wanted(redis: ArqRedis, *names: str) -> dict[str, object]:
    return {name: _options(redis)[name] for name in names}


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://h", TcpConnection),
        ("rediss://h", TlsConnection),
        ("unix:///s", UnixConnection),
        ("sentinel://h/m", PrimaryTcpConnection),
        ("sentinel://h/m?tls=yes", PrimaryTlsConnection),
        ("sentinel://h/m?tls=no", PrimaryTcpConnection),
    ],
)
def test_each_kind_of_url_has_its_connections(url: str, kind: type) -> None:
    redis = connect(url)

    assert redis.connection_pool.connection_class is kind


def test_a_url_names_host_database_and_credentials() -> None:
    redis = connect("redis://app:s3%40cret@h:7/3?client_name=web&max_connections=8")

    assert _wanted(redis, "host", "port", "db", "username", "password", "client_name") == {
        "host": "h",
        "port": 7,
        "db": 3,
        "username": "app",
        "password": "s3@cret",
        "client_name": "web",
    }
    assert redis.connection_pool.max_connections == 8


def test_a_sentinel_url_names_the_sentinels_the_primary_and_two_kinds_of_credentials() -> None:
    redis = connect(FLEET)
    pool = redis.connection_pool

    assert isinstance(pool, PrimaryPool)
    assert pool.place == "the primary queue of Sentinel at one:1, two:26379, ::1:3"
    assert _wanted(redis, "db", "username", "password") == {
        "db": 2,
        "username": "app",
        "password": "s3cret",
    }
    for sentinel in pool.sentinel_manager.sentinels:
        options = sentinel.connection_pool.connection_kwargs
        assert (options["username"], options["password"]) == (None, "s3+cret")


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "unix:///s", "sentinel://h/m?tls=1"])
def test_every_wait_has_an_end_and_nothing_is_sent_twice(url: str) -> None:
    connection = connect(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]

    assert (connection.socket_timeout, connection.socket_connect_timeout) == (10, 5)
    assert connection.health_check_interval == 30
    assert connection.retry._retries == 0
    if not isinstance(connection, UnixConnection):
        assert connection.socket_keepalive


@pytest.mark.parametrize("url", ["rediss://h", "sentinel://h/m?tls=yes"])
@pytest.mark.parametrize(
    ("option", "expected"),
    [("", [True]), ("ssl_check_hostname=no", [False]), ("ssl_cert_reqs=none", [False])],
)
def test_the_name_in_the_certificate_is_checked_unless_the_url_says_otherwise(
    url: str, option: str, expected: list[bool]
) -> None:
    redis = connect(f"{url}{'&' if '?' in url else '?'}{option}" if option else url)
    pools = [redis.connection_pool]
    if isinstance(redis.connection_pool, PrimaryPool):
        pools += [each.connection_pool for each in redis.connection_pool.sentinel_manager.sentinels]

    contexts = [pool.make_connection().ssl_context.get() for pool in pools]  # type: ignore[no-untyped-call]
    assert [context.check_hostname for context in contexts] == expected * len(pools)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:6379",
        "http://:s3cret@h",
        "redis://:s3cret@h:port",
        "redis://:s3cret@h:0",
        "redis://:s3cret@h?db=one",
        "redis://:s3cret@h?max_connections=many",
        "redis://:s3cret@h?max_connections=8.5",
        "redis://:s3cret@h?socket_timeout=s3cret",
        "rediss://h?ssl_cert_reqs=perhaps",
        "sentinel://:s3cret@h",
        "sentinel://:s3cret@h/",
        "sentinel://:s3cret@h/m/0",
        "sentinel://:s3cret@/m",
        "sentinel://:s3cret@h,,i/m",
        "sentinel://:s3cret@h:0/m",
        "sentinel://:s3cret@h:port/m",
    ],
)
def test_what_is_no_url_of_redis_is_refused_without_the_password(url: str) -> None:
    with pytest.raises(ErrClientNotConfigured, match="sentinel://HOST:PORT") as caught:
        check_url(url)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://:s3cret@h?ssl_ca_cert=x", "a redis URL has no option ssl_ca_cert; known are"),
        ("redis://:s3cret@h?ssl_ca_certs=x", "no option ssl_ca_certs"),
        ("redis://:s3cret@h?retry_on_timeout=yes", "no option retry_on_timeout"),
        ("redis://:s3cret@h?decode_responses=yes", "no option decode_responses"),
        ("unix:///s?socket_keepalive=yes&password=s3cret", "no option socket_keepalive"),
        ("sentinel://h/m?ssl_ca_certs=x&password=s3cret", "no option ssl_ca_certs"),
        ("sentinel://h/m?tls=&password=s3cret", "empty, or given twice"),
        ("redis://h/0?db=1&db=2&password=s3cret", "empty, or given twice"),
        ("sentinel://h/m?tls=perhaps&password=s3cret", "tls of a sentinel URL is yes or no"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(url: str, message: str) -> None:
    with pytest.raises(ErrClientNotConfigured, match=message) as caught:
        check_url(url)

    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "unix:///s", "sentinel://h/m?tls=1"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("socket_timeout=2.9", "socket_timeout=2.9 .* have no answer for 2 s; give 3 or more"),
        ("socket_timeout=0", "give 3 or more"),
        ("socket_timeout=nan", "give 3 or more"),
        ("socket_timeout=inf", "give 3 or more"),
        ("socket_connect_timeout=0", "no connection would come about; give 0.1 or more"),
        ("max_connections=7", "max_connections=7 .* a worker uses up to six .*; give 8 or more"),
        ("max_connections=0", "give 8 or more"),
        ("max_connections=-1", "give 8 or more"),
        ("health_check_interval=-1", "give 0 or more"),
    ],
)
def test_an_option_with_which_nothing_would_work_is_refused(
    url: str, option: str, message: str
) -> None:
    with pytest.raises(ErrClientNotConfigured, match=message):
        check_url(f"{url}{'&' if '?' in url else '?'}{option}")


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "unix:///s", "sentinel://h/m?tls=1"])
def test_the_least_that_works_is_accepted(url: str) -> None:
    least = "socket_timeout=3&socket_connect_timeout=0.1&max_connections=8&health_check_interval=0"

    check_url(f"{url}{'&' if '?' in url else '?'}{least}")


def test_tls_files_that_cannot_be_read_are_told_at_once(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")

    with pytest.raises(ErrClientNotConfigured, match=r"No such file.*check ssl_ca_certs"):
        connect(f"rediss://h?ssl_ca_certs={tmp_path / 'absent.pem'}")
    with pytest.raises(ErrClientNotConfigured, match=r"cannot be used \(.+\): check ssl_ca_certs"):
        connect(f"sentinel://h/m?tls=yes&ssl_ca_certs={broken}")


@pytest.mark.parametrize(
    "url",
    [
        "redis://app:s3cret@127.0.0.1:1",
        "unix:///nowhere?password=s3cret",
        "sentinel://app:s3cret@127.0.0.1:1/m?sentinel_password=s3cret",
    ],
)
async def test_no_password_is_shown(url: str) -> None:
    redis = connect(url)

    with pytest.raises(ErrDaemonUnavailable) as caught:
        await ping(redis)

    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown + repr(redis) + repr(redis.connection_pool)
    await redis.aclose(close_connection_pool=True)


async def test_a_primary_that_cannot_be_found_is_named_with_its_sentinels() -> None:
    redis = connect("sentinel://127.0.0.1:1,127.0.0.1:2/queue")

    with pytest.raises(
        ErrDaemonUnavailable, match=r"primary queue of Sentinel at 127.0.0.1:1, 127.0.0.1:2 does"
    ):
        await ping(redis)
    await redis.aclose(close_connection_pool=True)
