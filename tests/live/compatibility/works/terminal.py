"""A pseudo-terminal echoes, has a size, and sends Ctrl-C to the program in it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import termios

main, terminal = pty.openpty()
assert os.ttyname(terminal).startswith("/dev/pts/")
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
assert os.get_terminal_size(terminal) == (80, 24)
os.write(main, b"line\n")
assert os.read(terminal, 100) == b"line\n"
assert os.read(main, 100) == b"line\r\n"

child, terminal = pty.fork()
if child == 0:
    os.execvp("sh", ["sh", "-c", "tty && echo ready && exec sleep 1000"])
heard = b""
while not heard.endswith(b"ready\r\n"):
    heard += os.read(terminal, 100)
assert heard.startswith(b"/dev/pts/")
os.write(terminal, b"\x03")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT
