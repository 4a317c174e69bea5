"""Looks for processes of the host and shoots at all there could be."""

from __future__ import annotations

import os
import resource
import signal
import sys

from corral_worker.prove.programs.attempts import attempt, tell

victim, most = int(sys.argv[1]), int(sys.argv[2])
visible = [name for name in os.listdir("/proc") if name.isdigit()]


def see() -> list[str]:
    others = [name for name in visible if int(name) != os.getpid()]
    if not others:
        raise ProcessLookupError("none but itself")
    return others


def shoot_all() -> int:
    hit = 0
    for pid in range(1, most):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
            hit += 1
    if hit == 0:
        raise ProcessLookupError("none was hit")
    return hit


attempt("see others", see)
attempt("signal a process of the host", lambda: os.kill(victim, 0))
attempt("kill by number", shoot_all)
attempt("kill all at once", lambda: os.kill(-1, signal.SIGKILL))
attempt("get a handle of one", lambda: os.pidfd_open(victim))
attempt("give one another priority", lambda: os.setpriority(os.PRIO_PROCESS, victim, 10))
attempt("limit one", lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE, (1, 1)))
tell()
