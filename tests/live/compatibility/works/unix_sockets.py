"""Unix sockets of each kind, by path and abstract name, with descriptors and credentials."""

from __future__ import annotations

import os
import socket
import struct
import tempfile

for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other, tempfile.TemporaryFile() as file:
        file.write(b"passed on")
        file.flush()
        socket.send_fds(one, [b"x"], [file.fileno()])
        received = socket.recv_fds(other, 1, 1)[1][0]
        assert os.pread(received, 100, 0) == b"passed on"
        os.close(received)

for address in ("socket", "\0abstract"):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(address)
        server.listen()
        client.connect(address)
        accepted, _ = server.accept()
        with accepted:
            credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            assert struct.unpack("iII", credentials) == (os.getpid(), os.getuid(), os.getgid())
