"""Runs Lua inside Redis, by digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable
from importlib.resources import files
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from corral import codec, keys

Argument = str | bytes | int | float


class Script:
    """One Lua file with the shared prelude in front.

    A line ``#!lua flags=…`` that it begins with stays the first. Those that bring
    jobs to their ends or obey an operator say ``allow-oom``: a Redis that is full
    gets empty by them. What puts jobs in says nothing, and is refused.

    Sent by its digest; the text only if the server does not know it: it was
    restarted, or another one took over.

    Args:
        package: the package in whose directory ``lua`` the file is.
        name: the file's name without its ending.
    """

    def __init__(self, package: str, name: str) -> None:
        self.name = name
        flags, body = _parts(_read(package, name))
        self._text = flags + _with_names(
            "\n".join(
                (
                    f"local VERSION = {codec.VERSION}\nlocal FUNCTION = '{keys.FUNCTION}'",
                    _read("corral", "prelude"),
                    f"local function main()\n{body}\nend",
                    "local reply = main()\nflush()\nreturn reply",
                )
            )
        )
        # Redis names scripts so; nothing is kept secret by it.
        self._digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, *arguments: Argument) -> object:
        """Run the script and return its reply.

        Never sent twice, unless the server says that it did not run it.

        Raises:
            RedisError: Redis does not answer, or the script failed.
        """
        try:
            return await self._send(redis, "EVALSHA", self._digest, 0, *arguments)
        except NoScriptError:
            return await self._send(redis, "EVAL", self._text, 0, *arguments)

    @staticmethod
    async def _send(redis: Redis, *words: Argument) -> object:
        # Names that strangers put into Redis need not be UTF-8: as they came, so they go.
        raw = [
            word.encode("utf-8", "surrogateescape") if isinstance(word, str) else word
            for word in words
        ]
        answer = redis.execute_command(*raw)  # type: ignore[no-untyped-call]
        return await cast("Awaitable[object]", answer)


def _read(package: str, name: str) -> str:
    return (files(package) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _parts(text: str) -> tuple[str, str]:
    """Return the line that tells Redis how to run a script, if there is one, and the rest."""
    if not text.startswith("#!"):
        return "", text
    flags, _, body = text.partition("\n")
    return f"{flags}\n", body


def _with_names(text: str) -> str:
    # A table of names would be made anew with every call.
    names = keys.for_lua()
    return re.sub(r"\bK\.(\w+)", lambda match: f"'{names[match[1]]}'", text)
