"""The cgroup of one sandbox: its limits, its counters, its end."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from corral import HostLimits
from corral_worker.sandbox import cgroup
from corral_worker.sandbox.cgroup import CgroupError, Counters, SandboxCgroup
from corral_worker.sandbox.cgroup_v1 import CgroupV1
from corral_worker.sandbox.cgroup_v2 import CgroupV2

MIB = 1024**2
LIMITS = HostLimits(memory_bytes=64 * MIB, swap_bytes=0, cpus=0.5, tasks=60)


@pytest.fixture(autouse=True)
def swaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's swap areas: none, if the test makes none."""
    file = tmp_path / "swaps"
    file.write_text("Filename\tType\tSize\tUsed\tPriority\n")
    monkeypatch.setattr(cgroup, "SWAPS", file)
    return file


def v2(tmp_path: Path) -> CgroupV2:
    return CgroupV2(tmp_path, "/corral/one")


def test_in_version_2_limits_are_written_and_read_back(tmp_path: Path) -> None:
    held = v2(tmp_path).create(LIMITS)

    own = tmp_path / "corral" / "one"
    assert (own / "memory.max").read_text() == str(64 * MIB)
    assert (own / "pids.max").read_text() == "60"
    assert (own / "cpu.max").read_text() == "50000 100000"
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    # This fake kernel does not account for swap.
    assert held == replace(LIMITS, swap_bytes=None)


def test_where_a_cgroup_cannot_be_idle_it_weighs_the_least_while_it_waits(tmp_path: Path) -> None:
    waiting = v2(tmp_path)
    waiting.create(LIMITS)
    weight = tmp_path / "corral" / "one" / "cpu.weight"

    waiting.yield_processor()
    assert weight.read_text() == "1"
    waiting.begin()
    assert weight.read_text() == "2"


@given(cpus=st.floats(0.01, 1024))
def test_no_share_of_processors_is_refused_for_the_rounding_of_numbers(
    tmp_path_factory: pytest.TempPathFactory, cpus: float
) -> None:
    limits = replace(LIMITS, cpus=cpus)

    held = v2(tmp_path_factory.mktemp("cgroup")).create(limits)

    assert 0 <= cpus - held.cpus <= 1e-5 + 1e-9 * cpus or held.cpus == pytest.approx(cpus)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("memory.max", "max\n"),
        ("memory.max", f"{64 * MIB + 4096}\n"),
        ("pids.max", "max\n"),
        ("pids.max", "61\n"),
        ("cpu.max", "max 100000\n"),
        ("cpu.max", "50001 100000\n"),
        ("cpu.max", ""),
    ],
)
def test_a_limit_that_does_not_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str
) -> None:
    real = cgroup.read

    def read(path: cgroup.File) -> str:
        return content if Path(path).name == file else real(path)

    monkeypatch.setattr("corral_worker.sandbox.cgroup.read", read)
    monkeypatch.setattr("corral_worker.sandbox.cgroup_v2.read", read)

    with pytest.raises(CgroupError, match=r"was set to .* but reads back as"):
        v2(tmp_path).create(LIMITS)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("pids.max", "max\n"),
        ("cpu.cfs_quota_us", "-1\n"),
    ],
)
def test_in_version_1_a_limit_that_does_not_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str
) -> None:
    real = cgroup.read
    monkeypatch.setattr(
        "corral_worker.sandbox.cgroup.read",
        lambda path: content if Path(path).name == file else real(path),
    )
    hierarchies = {name: tmp_path / name for name in ("memory", "pids", "cpu", "cpuacct")}

    with pytest.raises(CgroupError, match=r"was set to .* but reads back as"):
        CgroupV1(hierarchies, "/corral/one").create(LIMITS)


def v1(tmp_path: Path) -> CgroupV1:
    return CgroupV1(
        {name: tmp_path / name for name in ("memory", "pids", "cpu", "cpuacct")}, "/corral/one"
    )


@pytest.mark.parametrize("version", [v1, v2], ids=["version 1", "version 2"])
def test_swap_that_would_not_be_limited_refuses_the_sandbox(
    tmp_path: Path, swaps: Path, version: Callable[[Path], SandboxCgroup]
) -> None:
    with swaps.open("a") as file:
        file.write("/dev/sda2\tpartition\t1000\t0\t-2\n")

    with pytest.raises(CgroupError, match=r"1 swap area\(s\) are in use: .* swapoff -a"):
        version(tmp_path).create(LIMITS)


@pytest.mark.parametrize("missing", ["memory.max", "pids.max", "cpu.max", "cgroup.subtree_control"])
def test_a_controller_that_the_kernel_lacks_refuses_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    lacking(monkeypatch, missing)

    with pytest.raises(CgroupError, match=rf"{missing} does not take .* controller enabled"):
        v2(tmp_path).create(LIMITS)


@pytest.mark.parametrize(
    "missing",
    ["memory.limit_in_bytes", "pids.max", "cpu.cfs_period_us", "cpu.cfs_quota_us"],
)
def test_in_version_1_a_limit_that_the_kernel_lacks_refuses_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    lacking(monkeypatch, missing)

    with pytest.raises(CgroupError, match=rf"{missing} does not take .* controller enabled"):
        v1(tmp_path).create(LIMITS)


def lacking(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make it a kernel without that control file: nobody can make one in cgroupfs."""
    real = os.open

    def open_(path: cgroup.File, flags: int) -> int:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags)

    monkeypatch.setattr(os, "open", open_)


def test_a_limit_of_swap_that_does_not_hold_is_refused() -> None:
    with pytest.raises(CgroupError, match="swap_bytes was set to 0 but reads back as 4096"):
        cgroup.check_held(LIMITS, replace(LIMITS, swap_bytes=4096))


def test_a_limit_that_is_tighter_than_asked_holds() -> None:
    held = replace(LIMITS, memory_bytes=64 * MIB - 4096, cpus=0.4, tasks=1)

    assert cgroup.check_held(LIMITS, held) == held


def test_a_cgroup_that_is_there_already_is_somebody_elses(tmp_path: Path) -> None:
    v2(tmp_path).create(LIMITS)

    with pytest.raises(CgroupError, match="cannot be made: File exists"):
        v2(tmp_path).create(LIMITS)


def test_in_version_2_counters_are_read_from_the_cgroup_that_stays(tmp_path: Path) -> None:
    own = tmp_path / "corral" / "one"
    own.mkdir(parents=True)
    (own / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (own / "memory.peak").write_text("12345\n")
    (own / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 1\n")
    (own / "memory.current").write_text("4096\n")
    (own / "pids.peak").write_text("17\n")

    counters = v2(tmp_path).counters()

    assert counters == Counters(
        cpu_s=1.5, peak_memory_bytes=12345, peak_tasks=17, oom_kills=2, memory_bytes=4096
    )


def test_counters_the_kernel_does_not_keep_are_not_made_up(tmp_path: Path) -> None:
    own = tmp_path / "corral" / "one"
    own.mkdir(parents=True)
    (own / "cpu.stat").write_text("usage_usec 10\n")

    assert v2(tmp_path).counters().peak_tasks is None


def test_counters_of_a_cgroup_that_is_gone_are_zeros(tmp_path: Path) -> None:
    zeros = Counters(cpu_s=0, peak_memory_bytes=0, peak_tasks=None, oom_kills=0)

    assert v2(tmp_path).counters() == zeros


def test_processes_of_cgroups_below_count(tmp_path: Path) -> None:
    own = tmp_path / "corral" / "one"
    (own / "sandbox" / "deep").mkdir(parents=True)
    (own / "cgroup.procs").write_text("1\n")
    (own / "sandbox" / "cgroup.procs").write_text("22\n333\n")
    (own / "sandbox" / "deep" / "cgroup.procs").write_text("4444\n")
    (tmp_path / "corral" / "cgroup.procs").write_text("99999\n")

    assert v2(tmp_path).processes() == {1, 22, 333, 4444}


def test_in_version_2_the_kernel_kills_all_at_once(tmp_path: Path) -> None:
    own = tmp_path / "corral" / "one"
    own.mkdir(parents=True)

    v2(tmp_path).kill()

    assert (own / "cgroup.kill").read_text() == "1"


def test_in_version_1_what_is_frozen_is_thawed_to_die(tmp_path: Path) -> None:
    hierarchies = {
        name: tmp_path / name for name in ("memory", "pids", "cpu", "cpuacct", "freezer")
    }
    own = tmp_path / "freezer" / "corral" / "one"
    own.mkdir(parents=True)

    CgroupV1(hierarchies, "/corral/one").kill()

    assert (own / "freezer.state").read_text() == "THAWED"


def test_a_cgroup_that_is_not_empty_is_not_removed(tmp_path: Path) -> None:
    v2(tmp_path).create(LIMITS)  # its files are what cgroupfs would not mind

    with pytest.raises(CgroupError, match="cannot be removed: Directory not empty"):
        v2(tmp_path).remove()


def test_empty_cgroups_are_removed_with_all_below(tmp_path: Path) -> None:
    own = tmp_path / "corral" / "one"
    (own / "sandbox" / "deep").mkdir(parents=True)

    v2(tmp_path).remove()
    v2(tmp_path).remove()

    assert not own.exists()
    assert own.parent.exists()
