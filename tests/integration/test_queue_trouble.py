"""What the log tells of commands that real servers refuse."""

from __future__ import annotations

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ResponseError
from structlog.testing import capture_logs
from support.serving import Watched, serving, until

from corral.connection import connect
from corral_worker.queue.trouble import reason


async def test_the_log_tells_what_redis_said_of_the_commands_that_it_refused(
    redis_client: ArqRedis, redis_url: str
) -> None:
    rules = ("on", "nopass", "~*", "&*", "+@all", "-evalsha", "-subscribe")
    await redis_client.execute_command("ACL", "SETUSER", "weak", *rules)  # type: ignore[no-untyped-call]
    weak = connect(f"{redis_url}?username=weak&password=any")
    told: dict[str, str] = {}
    try:
        with capture_logs() as logs:

            async def all_is_told() -> bool:
                told.update({entry["event"]: entry["error"] for entry in logs if "error" in entry})
                return told.keys() >= {"queue.interrupted", "sweep.failed", "control.interrupted"}

            async with serving(weak, Watched()):
                await until(all_is_told)
    finally:
        await weak.aclose(close_connection_pool=True)
        await redis_client.acl_deluser("weak")

    for event, refused in (
        ("queue.interrupted", "evalsha"),
        ("sweep.failed", "evalsha"),
        ("control.interrupted", "subscribe"),
    ):
        assert told[event].startswith("NoPermissionError: ")
        assert refused in told[event]


async def test_what_redis_quotes_of_a_command_is_not_in_the_log(redis_client: ArqRedis) -> None:
    with pytest.raises(ResponseError, match="precious") as caught:
        await redis_client.execute_command("NOSUCH", "precious")  # type: ignore[no-untyped-call]

    assert reason(caught.value) == "ResponseError: unknown command 'NOSUCH'"
