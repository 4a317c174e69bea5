"""epoll with an eventfd, a timerfd, a signalfd and a pipe."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct

libc = ctypes.CDLL(None, use_errno=True)

event = os.eventfd(0)
timer = libc.timerfd_create(1, 0)
assert timer >= 0
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
mask = struct.pack("Q120x", 1 << (signal.SIGUSR1 - 1))
signals = libc.signalfd(-1, mask, 0)
assert signals >= 0
reading, writing = os.pipe()

os.eventfd_write(event, 7)
in_a_moment = struct.pack("qqqq", 0, 0, 0, 1_000_000)
assert libc.timerfd_settime(timer, 0, in_a_moment, None) == 0
os.kill(os.getpid(), signal.SIGUSR1)
os.write(writing, b"p")

awaited = {event, timer, signals, reading}
with select.epoll() as poll:
    for descriptor in awaited:
        poll.register(descriptor, select.EPOLLIN)
    while awaited:
        ready = poll.poll(timeout=60)
        assert ready, awaited
        for descriptor, _ in ready:
            awaited.discard(descriptor)
            poll.unregister(descriptor)

assert os.eventfd_read(event) == 7
assert os.read(timer, 8) == struct.pack("Q", 1)
assert struct.unpack_from("I", os.read(signals, 128))[0] == signal.SIGUSR1
