"""Handlers, masks, alarms, stopping and continuing, and who sent what to whom."""

from __future__ import annotations

import os
import signal
import time

heard: list[int] = []
signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
os.kill(os.getpid(), signal.SIGUSR1)
assert heard == [signal.SIGUSR1]

signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
signal.setitimer(signal.ITIMER_REAL, 0.001)
while len(heard) == 1:  # a pause() here could begin after the alarm
    time.sleep(0.001)
assert heard == [signal.SIGUSR1, signal.SIGALRM]

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
if (child := os.fork()) == 0:
    os.kill(os.getppid(), signal.SIGUSR2)
    while True:
        signal.pause()
received = signal.sigtimedwait({signal.SIGUSR2}, 60)
assert received is not None
assert received.si_pid == child

os.kill(child, signal.SIGSTOP)
assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
os.kill(child, signal.SIGCONT)
assert os.WIFCONTINUED(os.waitpid(child, os.WCONTINUED)[1])
os.kill(child, signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
