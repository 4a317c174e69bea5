"""Whether the times of a result say something about the job, or about its host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from corral_worker.sandbox.timing import Strain, is_unreliable, read_strain

START = Strain(
    at_s=100.0, waiting_s=50.0, stalled_s=5.0, processors_s=1000.0, idle_s=500.0, stolen_s=10.0
)


def after(
    *,
    seconds: float = 10.0,
    waited: float = 0.0,
    stalled: float = 0.0,
    idle: float = 10.0,
    stolen: float = 0.0,
) -> Strain:
    """What a host with two processors has counted some seconds later."""
    return Strain(
        at_s=START.at_s + seconds,
        waiting_s=50.0 + waited,
        stalled_s=5.0 + stalled,
        processors_s=START.processors_s + 2 * seconds,
        idle_s=START.idle_s + idle,
        stolen_s=START.stolen_s + stolen,
    )


@pytest.mark.parametrize(
    ("end", "unreliable"),
    [
        pytest.param(after(), False, id="a calm host"),
        pytest.param(after(waited=9, idle=0.1), True, id="others were in the way"),
        pytest.param(after(waited=2, idle=0.1), False, id="but seldom"),
        pytest.param(
            after(waited=9, idle=12), False, id="what waits at its own limit leaves processors idle"
        ),
        pytest.param(after(idle=0), False, id="all processors busy and nobody waits"),
        pytest.param(after(stolen=1.1), True, id="the hypervisor took processors away"),
        pytest.param(after(stolen=0.9), False, id="a few of them"),
        pytest.param(after(stalled=0.6), True, id="memory was short"),
        pytest.param(after(stalled=0.4), False, id="memory was short for a moment"),
        pytest.param(after(seconds=0), False, id="no time at all"),
        pytest.param(replace(after(), processors_s=1000.0), False, id="less than a tick"),
    ],
)
def test_times_are_unreliable_if_others_were_in_the_way(end: Strain, unreliable: bool) -> None:  # noqa: FBT001
    assert is_unreliable(START, end) is unreliable


def test_what_the_kernel_does_not_count_makes_nothing_unreliable() -> None:
    silent = {"waiting_s": None, "stalled_s": None}

    assert not is_unreliable(replace(START, **silent), replace(after(idle=0), **silent))
    assert not is_unreliable(None, after(stolen=10))
    assert not is_unreliable(START, None)


@given(waited=st.floats(0, 10), idle=st.floats(0, 20), more=st.floats(0, 5))
def test_more_waiting_never_makes_times_more_reliable(
    waited: float, idle: float, more: float
) -> None:
    less = is_unreliable(START, after(waited=waited, idle=idle))

    assert is_unreliable(START, after(waited=waited + more, idle=idle)) >= less


def test_the_counters_are_those_of_proc(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [100, 1, 50, 300, 40, 3, 2, 9, 7, 7]
    (tmp_path / "stat").write_text(
        "cpu  " + " ".join(str(field * ticks) for field in fields) + "\ncpu0 1 1\n"
    )
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "cpu").write_text(
        "some avg10=1.00 avg60=1.00 avg300=1.00 total=2500000\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    )
    (tmp_path / "pressure" / "memory").write_text(
        "some avg10=1.00 avg60=1.00 avg300=1.00 total=9\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=500000\n"
    )

    # A guest's time is in that of its host's user: it is not counted twice.
    assert read_strain(7.0, proc=tmp_path) == Strain(
        at_s=7.0, waiting_s=2.5, stalled_s=0.5, processors_s=505.0, idle_s=340.0, stolen_s=9.0
    )


def test_a_kernel_without_pressure_and_a_host_that_cannot_be_read_are_no_errors(
    tmp_path: Path,
) -> None:
    assert read_strain(0.0, proc=tmp_path) is None
    (tmp_path / "stat").write_text("cpu  1 1 1 1\n")

    found = read_strain(0.0, proc=tmp_path)

    assert found is not None
    assert (found.waiting_s, found.stalled_s, found.stolen_s) == (None, None, 0.0)


def test_this_hosts_own_counters_can_be_read() -> None:
    found = read_strain(0.0)

    assert found is not None
    assert found.processors_s > found.idle_s > 0
