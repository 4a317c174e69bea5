"""TCP and UDP on loopback: names, options, half-closed connections and a refused one."""

from __future__ import annotations

import socket

for name in ("localhost", socket.gethostname()):
    assert "127.0.0.1" in {found[4][0] for found in socket.getaddrinfo(name, 80)}

with socket.create_server(("127.0.0.1", 0)) as server:
    client = socket.create_connection(server.getsockname(), timeout=60)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    accepted, address = server.accept()
    assert address == client.getsockname()
    with client, accepted:
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(100, socket.MSG_WAITALL) == b"request"
        accepted.sendall(b"answer")
        accepted.close()
        assert client.recv(100, socket.MSG_WAITALL) == b"answer"

for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    with (
        socket.socket(family, socket.SOCK_DGRAM) as receiver,
        socket.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.settimeout(60)
        receiver.bind((host, 0))
        sender.sendto(b"datagram", receiver.getsockname())
        assert receiver.recv(100) == b"datagram"

with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))
    try:
        socket.create_connection(unused.getsockname(), timeout=60)
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("connected to nobody")
