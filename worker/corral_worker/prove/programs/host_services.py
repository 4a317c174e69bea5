"""Tries to reach listeners of the host itself."""

from __future__ import annotations

import socket
import sys
from functools import partial

from corral_worker.prove.programs.attempts import attempt, tell

port, abstract, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def connect(family: int, address: tuple[str, int] | str) -> None:
    with socket.socket(family) as connection:
        connection.settimeout(10)
        connection.connect(address)


def ask() -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.settimeout(1)
        datagram.connect(("127.0.0.1", port))
        datagram.send(b"hello")
        return datagram.recv(10)


attempt("connect to its loopback", lambda: connect(socket.AF_INET, ("127.0.0.1", port)))
attempt("connect to its loopback by IPv6", lambda: connect(socket.AF_INET6, ("::1", port)))
attempt("ask its loopback by UDP", ask)
attempt("connect to an abstract socket", lambda: connect(socket.AF_UNIX, f"\0{abstract}"))
attempt("connect to a socket of its files", lambda: connect(socket.AF_UNIX, f"{directory}/socket"))
for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/dbus/system_bus_socket"):
    attempt(f"connect to {path}", partial(connect, socket.AF_UNIX, path))
tell()
