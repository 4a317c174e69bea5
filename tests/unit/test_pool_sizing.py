from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from corral_worker.pool.prepared import Shape
from corral_worker.pool.sizing import BURST_S, REMEMBERED_S, Demand, next_ones, wanted

SMALL = Shape(memory_bytes=1, cpus=1)
LARGE = Shape(memory_bytes=2, cpus=1)

shapes = st.builds(Shape, memory_bytes=st.integers(1, 4), cpus=st.sampled_from([0.5, 1.0]))
bursts = st.dictionaries(shapes, st.integers(0, 50))
budgets = st.integers(0, 20)


@given(bursts, budgets)
def test_never_more_than_the_budget_and_never_more_of_a_shape_than_came(
    burst: dict[Shape, int], most: int
) -> None:
    want = wanted(burst, most)

    assert sum(want.values()) <= most
    assert all(0 < number <= burst[shape] for shape, number in want.items())


@given(bursts, budgets)
def test_the_budget_is_used_as_far_as_there_is_demand(burst: dict[Shape, int], most: int) -> None:
    assert sum(wanted(burst, most).values()) == min(most, sum(burst.values()))


@given(bursts, budgets)
def test_a_larger_budget_takes_nothing_away(burst: dict[Shape, int], most: int) -> None:
    less, more = wanted(burst, most), wanted(burst, most + 1)

    assert all(more[shape] >= number for shape, number in less.items())


@given(bursts, budgets)
def test_no_shape_gets_a_second_before_each_has_one(burst: dict[Shape, int], most: int) -> None:
    want = wanted(burst, most)

    if any(number > 1 for number in want.values()):
        assert want.keys() == {shape for shape, number in burst.items() if number}


def test_the_busiest_seconds_count() -> None:
    demand = Demand()
    for at in (0, 1, 2, 2 + BURST_S, 100):
        demand.note(SMALL, at)
    demand.note(LARGE, 100)

    assert demand.bursts(101) == {SMALL: 3, LARGE: 1}


def test_what_nobody_asked_for_of_late_is_forgotten() -> None:
    demand = Demand()
    demand.note(SMALL, 0)
    demand.note(LARGE, 10)

    assert demand.bursts(REMEMBERED_S) == {LARGE: 1}
    assert demand.bursts(REMEMBERED_S + 10) == {}


@given(st.lists(st.tuples(st.floats(0, 500), shapes), max_size=200))
def test_a_burst_is_never_more_than_all_that_came(arrivals: list[tuple[float, Shape]]) -> None:
    demand = Demand()
    for at, shape in sorted(arrivals, key=lambda arrival: arrival[0]):
        demand.note(shape, at)
    now = max((at for at, _ in arrivals), default=0.0)

    found = demand.bursts(now)

    recent = [shape for at, shape in arrivals if at > now - REMEMBERED_S]
    # The last of a burst is remembered when the first is not any more.
    came = [shape for at, shape in arrivals if at > now - REMEMBERED_S - BURST_S]
    assert found.keys() == set(recent)
    assert all(1 <= number <= came.count(shape) for shape, number in found.items())


@given(st.lists(shapes))
def test_the_next_one_of_each_shape_is_the_one_that_has_waited_longest(
    waiting: list[Shape],
) -> None:
    following = next_ones(waiting)

    assert {waiting[place] for place in following} == set(waiting)
    assert all(waiting[place] not in waiting[:place] for place in following)
