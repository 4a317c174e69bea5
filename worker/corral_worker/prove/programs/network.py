"""Tries to reach anybody: metadata services, name servers, the host, its neighbours."""

from __future__ import annotations

import os
import socket
import sys
from functools import partial

from corral_worker.prove.programs.attempts import attempt, read, tell

WITHIN_S = 10
PLACES = (
    ("169.254.169.254", 80),  # AWS, GCP, Azure
    ("169.254.170.2", 80),  # AWS containers
    ("100.100.100.200", 80),  # Alibaba
    ("fd00:ec2::254", 80),  # AWS by IPv6
    ("10.0.0.1", 22),
    ("172.17.0.1", 2375),
    ("192.168.0.1", 80),
    ("8.8.8.8", 53),
    ("2001:4860:4860::8888", 53),
    ("255.255.255.255", 80),
)


def connect(place: tuple[str, int]) -> str:
    with socket.create_connection(place, timeout=WITHIN_S) as connection:
        return str(connection.getsockname())


def send(place: tuple[str, int]) -> int:
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagram:
        return datagram.sendto(b"hello", place)


def interfaces() -> list[str]:
    names = [line.split(":")[0].strip() for line in read("/proc/net/dev").decode().splitlines()[2:]]
    if names == ["lo"]:
        raise OSError("only lo")
    return names


for place in PLACES:
    attempt(f"connect to {place}", partial(connect, place))
    attempt(f"send to {place}", partial(send, place))
attempt("resolve a name", lambda: socket.getaddrinfo("example.com", 80))
attempt("resolve the metadata service", lambda: socket.getaddrinfo("metadata.google.internal", 80))
attempt("see an interface", interfaces)
tell(arguments=len(sys.argv), user=os.getuid())
