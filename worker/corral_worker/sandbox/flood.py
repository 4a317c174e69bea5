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
        begun: whether the end may be asked for already; else from :meth:`begin` on.
    """

    def __init__(self, most: int, stop: Stop, *, begun: bool = True) -> None:
        self._left = most
        self._stop = stop
        self._begun = begun

    def begin(self) -> None:
        """Ask for the end from now on, and now if it has been too much already.

        Before it was known that the program runs, others may have written, of why it does not.
        """
        self._begun = True
        self._check()

    def before(self, feed: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Return a feed that counts, then feeds."""

        def count(chunk: bytes) -> None:
            self._left -= len(chunk)
            self._check()
            feed(chunk)

        return count

    def _check(self) -> None:
        if self._begun and self._left < 0:
            self._stop.request("output_exceeded")
