from __future__ import annotations

import pytest

from corral_worker.sandbox.holdings import Holdings, beacon_of, is_sandbox, sandbox_in, worker_of
from corral_worker.sandbox.state import check_sandbox_id
from corral_worker.settings_rules import MAX_STATE_DIR_BYTES

WORKER = "0123abcd"


def test_a_sandbox_is_held_exactly_as_long_as_the_block() -> None:
    holdings = Holdings(WORKER)

    with holdings.hold() as one, holdings.hold() as two:
        assert holdings.now() == {one, two}
    assert holdings.now() == set()


def test_a_sandbox_is_given_up_when_the_block_fails() -> None:
    holdings = Holdings(WORKER)

    with pytest.raises(OSError, match="no"), holdings.hold():
        raise OSError("no")
    assert holdings.now() == set()


def test_no_name_is_given_twice() -> None:
    holdings = Holdings(WORKER)
    names: list[str] = []
    for _ in range(1000):
        with holdings.hold() as name:
            names.append(name)

    assert len(set(names)) == 1000


def test_a_name_tells_whose_it_is() -> None:
    with Holdings(WORKER).hold() as name:
        assert worker_of(name) == WORKER
        assert is_sandbox(name)
        assert check_sandbox_id(name) == name
        assert sandbox_in(f"{name}_sandbox:{name}.state") == name
        assert sandbox_in(f"runsc-{name}.sock") == name


def test_a_workers_own_cgroup_is_named_after_it_and_is_no_sandbox() -> None:
    assert worker_of(beacon_of(WORKER)) == WORKER
    assert not is_sandbox(beacon_of(WORKER))


def test_the_control_socket_has_room_below_the_longest_state_directory() -> None:
    with Holdings(WORKER).hold() as name:
        socket = f"/w-{WORKER}/r/runsc-{name}.sock"

    assert MAX_STATE_DIR_BYTES + len(socket) <= 107


@pytest.mark.parametrize(
    "name",
    [
        "",
        "corral",
        "corral-",
        "corral-0123abc",
        "corral-0123ABCD",
        "corral-0123abcd-",
        "corral-0123abcd-00001",
        "corral-0123abcd-000001\n",
        "corral-0123abcd-000001/..",
        "x-corral-0123abcd-000001",
        "corral-test-30494",
        "memory.limit_in_bytes",
    ],
)
def test_other_names_are_nobodys(name: str) -> None:
    assert worker_of(name) is None
    assert not is_sandbox(name)


@pytest.mark.parametrize("mark", ["", "0123abc", "0123abcde", "../../..", "0123ABCD", "0123abcd\n"])
def test_what_is_no_mark_names_no_worker(mark: str) -> None:
    with pytest.raises(ValueError, match="no worker's mark"):
        Holdings(mark)
