"""What the version 2 machine runs, and what it leaves out: a pytest plugin for it alone.

What is left out of a test that is run is skipped with its reason, so that the report of
each run lists it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pytest

RUN: Final = (
    # What depends on the version of the cgroups. The rest says the same on every host, and
    # emulated it would take an hour. The attack suite is not among it: six of its attacks, four
    # with an innocent job beside, had not ended after 13 minutes with half a real processor.
    "tests/unit/test_cgroup.py",
    "tests/unit/test_cgroup_host.py",
    "tests/live/test_cgroup.py",
    "tests/live/test_endings.py::test_a_program_says_hello",
    "tests/live/test_endings.py::test_an_exit_code_is_the_programs_own_even_if_it_looks_like_a_signal",
    "tests/live/test_endings.py::test_a_program_that_a_signal_of_its_own_ends_was_signalled",
    "tests/live/test_endings.py::test_usage_and_times_are_what_the_kernel_counted",
    "tests/live/test_endings.py::test_what_a_program_left_running_dies_with_it",
    "tests/live/test_limits.py::test_the_host_is_told_the_limits_and_asked_for_them_again",
    "tests/live/test_limits.py::test_a_program_sees_its_own_memory_and_processors",
    "tests/live/test_limits.py::test_a_program_that_runs_too_long_is_killed_and_its_output_kept",
    "tests/live/test_limits.py::test_a_program_that_ignores_signals_is_killed_all_the_same",
    "tests/live/test_limits.py::test_processor_time_is_limited_apart_from_wall_time",
    "tests/live/test_limits.py::test_files_in_memory_count_as_memory",
    "tests/live/test_limits.py::test_too_little_memory_to_boot_is_the_limits_doing",
    "tests/live/test_limits.py::test_a_fork_bomb_hits_the_limit_of_processes",
    "tests/live/test_limits.py::test_as_many_processes_as_the_limit_says_may_run",
    "tests/live/test_limits.py::test_what_all_writable_directories_hold_together_is_limited",
    "tests/live/test_stopping.py::test_a_running_program_is_cancelled_and_certified_dead",
    "tests/live/test_stopping.py::test_a_sandbox_that_is_being_started_can_be_cancelled_at_any_moment",
    "tests/live/test_on_the_host.py::test_no_process_of_a_sandbox_is_root_on_the_host_or_has_a_capability",
    "tests/live/test_reaper.py::test_a_version_2_cgroup_is_killed_as_a_whole_and_removed",
    "tests/live/test_hanging_warm.py::test_a_job_is_cancelled_whatever_of_its_sandbox_is_stopped",
    "tests/live/test_want_of_tasks.py::test_a_program_that_runs_when_there_are_no_more_threads_is_killed_all_the_same",
    "tests/live/worker/test_on_its_host.py::test_a_worker_in_a_delegated_cgroup_keeps_to_it",
    "tests/live/test_resting.py::test_the_death_of_one_that_rests_is_noticed",
    "tests/live/test_resting.py::test_one_that_rests_can_be_dismissed",
    "tests/live/test_warm.py::test_limits_are_the_jobs_own_and_read_back",
    "tests/live/test_warm.py::test_what_was_used_before_the_job_came_is_not_the_jobs",
    "tests/live/test_warm.py::test_a_pool_gives_each_job_a_sandbox_of_its_own_and_makes_another",
)


def pytest_configure(config: pytest.Config) -> None:
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = RUN


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _skip_cases_between(items)


def _skip_cases_between(items: Iterable[pytest.Item]) -> None:
    """Leave the first and the last of a test's cases: a sandbox takes seconds here.

    They differ in what gVisor is asked for, hardly in what the host's cgroups do.
    """
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        reason = f"one of {len(cases)} cases: under emulation only the first and the last are run"
        for item in cases[1:-1]:
            item.add_marker(pytest.mark.skip(reason=reason))
