"""What can be known when a sandbox has ended."""

from __future__ import annotations

from msgspec.structs import replace

from corral import Outcome
from corral_worker.sandbox.outcome import Ending, Evidence

EXIT_0, EXIT_3, EXIT_137 = 0, 3 << 8, 137 << 8
SIGKILL, SIGSEGV = 9, 11 | 0x80  # the second one with a core

MISSING = "starting container: starting sandbox: failed to load /x: no such file or directory"
NOT_FOUND = (
    "starting container: starting root container: starting sandbox: failed to find executable"
    ' "x": error finding executable "x" in PATH [/bin]: no such file or directory'
)
NOT_EXECUTABLE = "starting sandbox: failed to load /etc/passwd: permission denied"
LOADING = "starting sandbox: failed to load"
PANIC = "panic: createStub: failed to get clone: resource temporarily unavailable\n\ngoroutine 1"

NO_DIRECTORY = (
    "starting container: starting root container: starting sandbox: failed to create process:"
    ' failed to find initial working directory "/x": no such file or directory'
)

MIB = 1024**2
NEVER = Evidence(started=False, status=128, peak_memory_bytes=9 * MIB, memory_limit_bytes=64 * MIB)
RAN = Evidence(
    started=True,
    status=0,
    tasks_limit=60,
    peak_memory_bytes=30 * MIB,
    memory_limit_bytes=64 * MIB,
)
# As full as they can be: the kernel charges memory in batches.
NEVER_FULL = replace(NEVER, peak_memory_bytes=64 * MIB, oom_kills=1)
FULL = replace(RAN, peak_memory_bytes=62 * MIB, oom_kills=1)


def ending(outcome: Outcome, exit_code: int | None = None, signal: int | None = None) -> Ending:
    return Ending(outcome=outcome, exit_code=exit_code, signal=signal)
