from __future__ import annotations

import datetime as dt
import itertools
import json
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral_worker.sandbox.notes import Notes

EXEC = "kernel.go:1043] EXEC: [sh -c exit 7]"
STARTED = "loader.go:929] Process should have started..."


def log(*messages: tuple[str, float]) -> bytes:
    # As gVisor writes it: no space behind the names.
    return b"".join(
        b'{"msg":%s,"level":"info","time":"2026-01-01T00:00:%09.6fZ"}\n'
        % (json.dumps(message).encode(), second)
        for message, second in messages
    )


def told(message: str, at: dt.datetime) -> bytes:
    return b'{"msg":%s,"level":"info","time":"%s"}\n' % (
        json.dumps(message).encode(),
        at.isoformat().encode(),
    )


def ended(how: str, second: float = 3.5) -> tuple[str, float]:
    return f"boot.go:534] application exiting with {how}", second


def notes_of(*messages: tuple[str, float]) -> Notes:
    notes = Notes()
    notes.feed(log(*messages))
    return notes


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("exit status 0", 0),
        ("exit status 7", 7 << 8),
        ("exit status 137", 137 << 8),
        ("killed by signal 9", signal.SIGKILL),
        ("killed by signal 11", signal.SIGSEGV),
    ],
)
def test_an_exit_code_and_a_signal_are_told_apart(how: str, status: int) -> None:
    notes = notes_of((EXEC, 1), (STARTED, 2), ended(how))

    assert (notes.begun, notes.wait_status, notes.run_s) == (True, status, 1.5)


def test_what_runsc_run_says_of_the_end_does_not_count() -> None:
    notes = notes_of((STARTED, 2), ("main.go:222] Exiting with status: 9", 3))

    assert (notes.begun, notes.wait_status) == (True, None)


def test_the_first_end_is_the_programs() -> None:
    notes = notes_of(ended("exit status 3"), ended("killed by signal 9"))

    assert notes.wait_status == 3 << 8


def test_a_program_that_was_loaded_may_have_begun() -> None:
    notes = notes_of((EXEC, 1))

    assert (notes.is_starting, notes.begun, notes.run_s) == (True, False, 0.0)


@pytest.mark.parametrize(
    "message",
    [
        "compat.go:120] Unsupported syscall boot.go:534] application exiting with exit status 0",
        "kernel.go:1043] EXEC: [x boot.go:534] application exiting with exit status 0]",
        "boot.go:534] application exiting with exit status none",
        "boot.go:534] application exiting with exit status 1234567",
        "application exiting with exit status 0",
    ],
)
def test_a_guests_own_words_are_no_end(message: str) -> None:
    assert notes_of((message, 1)).wait_status is None


@pytest.mark.parametrize(
    "rest",
    [
        b'"time":"2026-01-01T00:00:00"}',
        b'"time":"never"}',
        b'"time":"2026-01-01T00:00:00Z","more":' + b"[" * 50_000 + b"}",
        b'"\xff":1}',
        b"}",
    ],
    ids=["no zone", "no time", "no bottom", "no text", "nothing"],
)
def test_a_sentry_that_was_taken_over_can_write_whatever_it_likes(rest: bytes) -> None:
    notes = notes_of((STARTED, 2))

    notes.feed(b'{"msg":"boot.go:1] application exiting with exit status 3",' + rest + b"\n")

    assert (notes.begun, notes.run_s) == (True, 0.0)


def test_a_guests_line_breaks_begin_no_note() -> None:
    forged = log(ended("exit status 0")).decode().strip()

    assert notes_of((f"kernel.go:1043] EXEC: [x\n{forged}\n]", 1)).wait_status is None


def test_a_note_without_end_takes_bounded_memory_and_hides_none_behind_it() -> None:
    notes = Notes()
    notes.feed(b'{"msg":"kernel.go:1043] EXEC: [')
    for _ in range(100):
        notes.feed(b"x" * 100_000)
    notes.feed(b"\n" + log(ended("exit status 1")))

    assert (notes.is_starting, notes.wait_status) == (True, 1 << 8)


@given(st.binary(max_size=400), st.lists(st.integers(min_value=0, max_value=600), max_size=5))
def test_it_does_not_matter_how_the_log_is_cut_into_chunks(noise: bytes, cuts: list[int]) -> None:
    whole = noise.replace(b"{", b"(") + b"\n" + log((EXEC, 1), (STARTED, 2), ended("exit status 9"))
    notes = Notes()
    places = [0, *sorted(cuts), len(whole)]
    for begin, end in itertools.pairwise(places):
        notes.feed(whole[begin:end])

    assert (notes.begun, notes.wait_status, notes.run_s) == (True, 9 << 8, 1.5)


def test_the_age_of_a_start_is_known_by_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    # However long the machine stands still meanwhile.
    monkeypatch.setattr("corral_worker.sandbox.notes._MOST_AGE_S", 1800.0)
    now = dt.datetime.now(dt.UTC)
    notes = Notes()
    assert notes.age_s() == 0.0

    notes.feed(told(STARTED, now - dt.timedelta(seconds=0.5)))

    assert 0.5 <= notes.age_s() < 1800.0


@pytest.mark.parametrize("off_s", [-3600.0, 3600.0])
def test_a_clock_that_was_set_makes_no_start_old(off_s: float) -> None:
    notes = Notes()

    notes.feed(told(STARTED, dt.datetime.now(dt.UTC) + dt.timedelta(seconds=off_s)))

    assert notes.age_s() == 0.0
