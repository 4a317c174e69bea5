"""curl fetches from, and posts to, a server on the loopback interface, by IPv4, IPv6 and name."""

from __future__ import annotations

import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"got")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body[::-1])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


class ByIPv6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def curl(*arguments: str) -> bytes:
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--fail", "--max-time", "60", *arguments],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


for server, host in (
    (ThreadingHTTPServer(("127.0.0.1", 0), Echo), "127.0.0.1"),
    (ByIPv6(("::1", 0), Echo), "[::1]"),
):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://{host}:{server.server_address[1]}/"
    assert curl(url) == b"got"
    assert curl("--data", "abc", url) == b"cba"
    assert curl(f"http://localhost:{server.server_address[1]}/") == b"got"
    server.shutdown()
    server.server_close()
