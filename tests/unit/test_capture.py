from __future__ import annotations

import os
import tracemalloc
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral_worker.process import capture
from corral_worker.process.capture import BoundedOutput, Captured, Spool

MIB = 1024**2
CHUNK = 256 * 1024


def fed(limit: int, chunks: list[bytes]) -> BoundedOutput:
    output = BoundedOutput(limit)
    for chunk in chunks:
        output.feed(chunk)
    return output


@given(limit=st.integers(0, 40), chunks=st.lists(st.binary(max_size=30), max_size=20))
def test_head_and_tail_are_kept_however_the_stream_was_cut(limit: int, chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    head, tail = limit // 2, limit - limit // 2

    captured = fed(limit, chunks).captured()

    assert captured.total == len(whole)
    if len(whole) <= limit:
        assert (captured.data, captured.gap) == (whole, None)
    else:
        assert captured.data == whole[:head] + whole[len(whole) - tail :]
        assert captured.gap == head


@given(
    limit=st.integers(0, 2 * MIB),
    sizes=st.lists(st.integers(0, CHUNK), max_size=60),
)
def test_memory_is_bounded_however_much_is_fed(limit: int, sizes: list[int]) -> None:
    output = BoundedOutput(limit)
    chunk = bytes(CHUNK)
    for size in sizes:
        output.feed(chunk[:size])
        assert len(output._memory) <= limit


def test_a_large_stream_keeps_its_first_and_last_bytes() -> None:
    numbers = b"".join(b"%07d\n" % number for number in range(1_000_000))
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]

    captured = fed(MIB, chunks).captured()

    assert captured.data == numbers[: MIB // 2] + numbers[-MIB // 2 :]
    assert (captured.total, captured.gap) == (8_000_000, MIB // 2)


def told(captured: Captured) -> tuple[bytes, int, int | None]:
    return captured.data, captured.total, captured.gap


def descriptors() -> set[str]:
    """What this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(f"{link.name} {link.readlink()}")
    return found


def files(directory: Path) -> list[Path]:
    return [*directory.iterdir()]


async def spooled(limit: int, chunks: list[bytes], directory: Path) -> Captured:
    with BoundedOutput(limit, Spool(directory, Spool.new_writers())) as output:
        for chunk in chunks:
            output.feed(chunk)
            await output.settle()
            assert len(output._fresh) <= capture._IN_MEMORY
            assert not output._memory
        return output.captured()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(5, 40), chunks=st.lists(st.binary(max_size=30), max_size=20))
def test_what_is_kept_on_disk_is_what_is_kept_in_memory(
    limit: int, chunks: list[bytes], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "_IN_MEMORY", 4)
        kept = anyio.run(spooled, limit, chunks, tmp_path)

    assert told(kept) == told(fed(limit, chunks).captured())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(0, 40),
    own=st.binary(max_size=120),
    words=st.binary(max_size=30),
    spools=st.booleans(),
)
def test_last_words_of_others_are_cut_as_if_they_had_not_been_said(
    limit: int, own: bytes, words: bytes, *, spools: bool, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "_IN_MEMORY", 4)
        whole = [own[start : start + 7] for start in range(0, len(own), 7)] + [words]
        kept = (
            anyio.run(spooled, limit, whole, tmp_path)
            if spools and limit > 4
            else fed(limit, whole).captured()
        )
    tail = limit - limit // 2

    kept.cut(words)

    assert kept.total == len(own)
    if len(own) + len(words) <= limit or len(own) <= limit // 2:
        assert told(kept) == (own, len(own), None)
    else:
        # What their place was taken from is not there any more.
        left = max(0, tail - len(words))
        assert kept.data == own[: limit // 2] + own[len(own) - left :]
        assert kept.gap == limit // 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(5, 40), own=st.binary(max_size=120), spools=st.booleans())
def test_what_was_not_said_is_not_cut(
    limit: int, own: bytes, *, spools: bool, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "_IN_MEMORY", 4)
        whole = [own + b"."]
        kept = (
            anyio.run(spooled, limit, whole, tmp_path) if spools else fed(limit, whole).captured()
        )

    kept.cut(b"more than that was")

    assert told(kept) == told(fed(limit, whole).captured())


async def test_a_flood_is_kept_without_its_memory_and_leaves_no_file(tmp_path: Path) -> None:
    numbers = b"".join(b"%07d\n" % number for number in range(500_000))
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]

    kept = await spooled(MIB, chunks, tmp_path)

    assert told(kept) == told(fed(MIB, chunks).captured())
    assert files(tmp_path) == []


async def test_a_little_output_never_touches_the_disk(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"

    kept = await spooled(MIB, [b"so ", b"little"], nowhere)

    assert (told(kept), kept.on_disk) == ((b"so little", 9, None), 0)


async def test_what_is_on_disk_is_in_memory_only_while_it_is_asked_for(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        kept = await spooled(4 * MIB, [bytes(CHUNK)] * 20, tmp_path)
        assert tracemalloc.get_traced_memory()[0] < MIB
        assert len(kept.data) == kept.on_disk == 4 * MIB
        assert tracemalloc.get_traced_memory()[0] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("is_closed", [True, False])
async def test_a_file_is_open_until_it_is_closed_or_forgotten(
    tmp_path: Path, *, is_closed: bool
) -> None:
    before = descriptors()
    kept = await spooled(MIB, [bytes(CHUNK)] * 8, tmp_path)
    assert descriptors() != before

    if is_closed:
        with kept:
            pass
    else:
        del kept

    assert descriptors() == before


async def test_output_that_nobody_asked_for_leaves_no_file_open(tmp_path: Path) -> None:
    before = descriptors()
    with BoundedOutput(MIB, Spool(tmp_path, Spool.new_writers())) as output:
        output.feed(bytes(CHUNK))
        await output.settle()
        assert descriptors() != before

    assert descriptors() == before


async def test_a_disk_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with BoundedOutput(MIB, Spool(tmp_path / "nowhere", Spool.new_writers())) as output:
        output.feed(bytes(CHUNK))
        with pytest.raises(OSError, match="nowhere"):
            await output.settle()


async def test_all_that_flood_share_a_few_threads(tmp_path: Path) -> None:
    writers = Spool.new_writers()
    async with anyio.create_task_group() as tasks:

        async def flood() -> None:
            with BoundedOutput(MIB, Spool(tmp_path, writers)) as output:
                for _ in range(8):
                    output.feed(os.urandom(CHUNK))
                    await output.settle()
                    assert writers.borrowed_tokens <= writers.total_tokens < 50

        for _ in range(50):
            tasks.start_soon(flood)
