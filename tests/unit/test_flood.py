"""A limit of output that ends the program."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from corral_worker.sandbox.flood import OutputMeter
from corral_worker.sandbox.stop import Stop


@given(
    most=st.integers(0, 100),
    chunks=st.lists(st.tuples(st.sampled_from([0, 1]), st.binary(max_size=40))),
    is_late=st.booleans(),
)
def test_the_end_is_asked_for_if_and_only_if_both_streams_together_exceed_the_limit(
    *, most: int, chunks: list[tuple[int, bytes]], is_late: bool
) -> None:
    stop = Stop()
    meter = OutputMeter(most, stop, begun=not is_late)
    kept: tuple[list[bytes], list[bytes]] = ([], [])
    feeds = [meter.before(stream.append) for stream in kept]

    for stream, chunk in chunks:
        feeds[stream](chunk)

    if is_late:
        # Not before it is known that the program runs.
        assert stop.cause is None
        meter.begin()
    total = sum(len(chunk) for _, chunk in chunks)
    assert stop.cause == ("output_exceeded" if total > most else None)
    # Whatever came is kept, the last of it too.
    assert [*kept[0], *kept[1]] == [c for s in (0, 1) for stream, c in chunks if stream == s]
