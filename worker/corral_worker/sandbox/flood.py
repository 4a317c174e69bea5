"""A limit of output that ends the program."""

from __future__ import annotations

from collections.abc import Callable

from corral_worker.sandbox.stop import Stop


class OutputMeter:
    """Counts what comes out of all streams, and asks for the end when it is too much.

    Bytes on their way when the end is asked for still count, and are still kept:
    at most what the pipes hold.

    Args:
        most: bytes of all streams together.
        stop: the sandbox's.
    """

    def __init__(self, most: int, stop: Stop) -> None:
        self._left = most
        self._stop = stop

    def before(self, feed: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Return a feed that counts, then feeds."""

        def count(chunk: bytes) -> None:
            self._left -= len(chunk)
            if self._left < 0:
                self._stop.request("output_exceeded")
            feed(chunk)

        return count
