"""The processes of a cgroup and their signals."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from corral_worker.sandbox.cgroup_processes import signal_all


def test_a_process_of_another_pid_namespace_is_never_taken_for_ourselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))

    signal_all([0, 7])

    assert killed == [(7, signal.SIGKILL)]


def test_a_parent_is_killed_before_its_children_however_they_are_numbered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    with subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", lambda pid, _: killed.append(pid))
            signal_all([child, parent.pid])
            signal_all([parent.pid, child])
        signal_all([child, parent.pid])

    assert killed == [parent.pid, child] * 2


def test_a_process_that_is_gone_between_two_looks_at_it_saves_none_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opens = os.open

    with subprocess.Popen(["sleep", "1000"]) as gone, subprocess.Popen(["sleep", "1000"]) as other:

        def reaped_when_opened(path: str, flags: int) -> int:
            descriptor = opens(path, flags)
            if str(path) == f"/proc/{gone.pid}/stat":
                gone.kill()
                gone.wait()
            return descriptor

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", reaped_when_opened)
            try:
                signal_all([gone.pid, other.pid])
            except OSError:
                other.terminate()
                raise

    assert other.returncode == -signal.SIGKILL
