"""What the version 2 machine runs, and what it leaves out: a pytest plugin for it alone.

What is left out of a file that is run is skipped with its reason, so that the report
of each run lists it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

RUN: Final = (
    # What depends on the version of the cgroups. The rest says the same on every host, and
    # emulated it would take an hour.
    "tests/live/test_cgroup.py",
    "tests/live/test_endings.py",
    "tests/live/test_limits.py",
    "tests/live/test_on_the_host.py",
    "tests/live/test_reaper.py",
    "tests/live/test_stopping.py",
    "tests/live/test_warm.py",
    "tests/unit/test_cgroup.py",
    "tests/unit/test_process.py",
)

LEFT_OUT: Final[Mapping[str, str]] = MappingProxyType({})
"""Node ids, or how they begin, and why: for version 2 or for emulation, never for being red."""


def pytest_configure(config: pytest.Config) -> None:
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = RUN


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for beginning, reason in LEFT_OUT.items():
        found = [item for item in items if item.nodeid.startswith(beginning)]
        if not found and _is_to_be_there(beginning, items):
            raise pytest.UsageError(f"there is no {beginning}: mend LEFT_OUT in {__file__}")
        for item in found:
            item.add_marker(pytest.mark.skip(reason=reason))
    _skip_cases_between(item for item in items if not item.get_closest_marker("skip"))


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


def _is_to_be_there(beginning: str, items: list[pytest.Item]) -> bool:
    file = beginning.partition("::")[0]
    return not Path(file).exists() or any(item.nodeid.startswith(file) for item in items)
