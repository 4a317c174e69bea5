"""Google's Python bindings of gVisor, in an environment that is thrown away after.

Closing a sandbox takes them as long as the host's process 1 takes to reap it: it is nobody's child.
That is in their throughput, as in their user's; their latency ends with the output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import anyio.to_thread
from bench.bare import LANES
from bench.ground import Ground

_PEER = Path(__file__).with_name("bindings_peer.py")
_COMMANDS = {"true": "true", "python": "python3 -c print(1)"}
_INSTALL_WITHIN_S = 120.0


class Bindings:
    """Runs programs by the bindings: a sandbox each, of the host's own files."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._directory = ground.directory / "bindings"
        self._peers: list[subprocess.Popen[str]] = []
        self._missing_because = "only measured with --bindings"

    @property
    def usable(self) -> bool:
        """Whether they are installed, and work here."""
        return bool(self._peers)

    def missing(self, *figures: str) -> Iterator[tuple[str, str | None]]:
        """Give the figures there are not, and why; nothing if they are measured."""
        if not self.usable:
            yield from ((figure, None) for figure in figures)
            yield "gvisor_missing_because", self._missing_because

    async def install(self, stack: ExitStack) -> None:
        """Install them, and have them ready until the stack is left."""
        python = self._directory / "bin" / "python3"
        try:
            with anyio.fail_after(_INSTALL_WITHIN_S):
                for command in (
                    [sys.executable, "-m", "venv", str(self._directory)],
                    [str(python), "-m", "pip", "install", "--quiet", "gvisor"],
                ):
                    await anyio.run_process(command)
        except (subprocess.CalledProcessError, TimeoutError) as error:
            self._missing_because = f"cannot be installed: {error}"
            return
        stack.callback(self._stop)
        for lane in range(LANES):
            self._peers.append(self._start(python, lane))
        try:
            await self.run("true")
        except (OSError, ValueError) as error:
            self._missing_because = f"do not work here: {error}"
            self._stop()

    async def run(self, program: str, lane: int = 0) -> tuple[float, float]:
        """Return the seconds until its output was there, and until its sandbox was gone.

        The former is not a number if they failed; why is on standard error.
        """
        return await anyio.to_thread.run_sync(self._ask, program, lane)

    def _start(self, python: Path, lane: int) -> subprocess.Popen[str]:
        # They put a socket three levels deeper, whose path may have 107 bytes.
        directory = self._ground.directory / f"g{lane}"
        directory.mkdir()
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", str(python), str(_PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(directory)},
        )

    def _ask(self, program: str, lane: int) -> tuple[float, float]:
        peer = self._peers[lane]
        assert peer.stdin is not None
        assert peer.stdout is not None
        peer.stdin.write(_COMMANDS[program] + "\n")
        peer.stdin.flush()
        seen_s, cycle_s = peer.stdout.readline().split()
        return float(seen_s), float(cycle_s)

    def _stop(self) -> None:
        for peer in self._peers:
            peer.kill()
            peer.wait()
            for stream in (peer.stdin, peer.stdout):
                with suppress(BrokenPipeError):
                    if stream is not None:
                        stream.close()
        self._peers.clear()
