"""Runs one external build tool, so that it can neither hang nor outlive the build."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio.to_thread

from corral_worker.images.errors import ImageBuildError
from corral_worker.process.call import PATH, CallTimeoutError, Completed, call
from corral_worker.process.capture import Captured

# What a download needs on some hosts. The worker's other variables may be secret.
_PASSED_ON: Final = (
    "HOME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "REGISTRY_AUTH_FILE",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
)
_KEPT_BYTES: Final = 4 << 20
_TAIL_BYTES: Final = 8 << 10
_TAIL_LINES: Final = 15


class Tool:
    """One program of the host, and the Debian package that brings it."""

    def __init__(self, program: str, *, package: str) -> None:
        self.program = program
        self.package = package

    async def path(self) -> str | None:
        """Return where the program is, or None if it is not installed."""
        return await anyio.to_thread.run_sync(lambda: shutil.which(self.program, path=PATH))

    async def run(
        self,
        *arguments: str,
        deadline_s: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        before: tuple[str, ...] = (),
    ) -> str:
        """Run the program to its end and return its standard output.

        ``before`` is a wrapper's argv. Raises :class:`ImageBuildError` if the
        program is missing, fails, or is not done in ``deadline_s`` seconds;
        then, and on cancellation, its process group is dead when this returns.
        It also dies with this process, however that ends.
        """
        path = await self.path()
        if path is None:
            raise ImageBuildError(
                f"{self.program} is not installed: install the Debian package {self.package}"
            )
        # The signal is bound to the thread that starts the tool: under asyncio
        # that is the event loop's own.
        argv = ("setpriv", "--pdeathsig", "KILL", "--", *before, path, *arguments)
        try:
            done = await call(
                argv,
                within_s=deadline_s,
                keep_bytes=_KEPT_BYTES,
                env=_environment(env or {}),
                cwd=cwd or Path.cwd(),
            )
        except CallTimeoutError as error:
            raise ImageBuildError(
                f"{self.program} was not done after {deadline_s:g} s and was killed: is a mirror "
                f"or registry slow or out of reach? Its last lines:\n{_last(error)}"
            ) from None
        if done.status != 0:
            raise ImageBuildError(
                f"{self.program} failed with exit code {done.status}. Mend what its last "
                f"lines say, then build again:\n{_last(done)}"
            )
        if done.stdout.gap is not None:
            raise ImageBuildError(f"{self.program} printed more than {_KEPT_BYTES} bytes")
        return done.stdout.data.decode(errors="replace")


def _last(said: Completed | CallTimeoutError) -> str:
    return _tail(said.stderr) or _tail(said.stdout) or "(it printed nothing)"


def _tail(captured: Captured) -> str:
    text = captured.data[-_TAIL_BYTES:].decode(errors="replace").replace("\r", "\n")
    return "\n".join([line for line in text.splitlines() if line.strip()][-_TAIL_LINES:])


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {"LC_ALL": "C.UTF-8", "PATH": PATH, **passed_on, **more}
