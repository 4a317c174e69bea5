"""What a program in a real sandbox can see and do of the host: nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from corral import EffectiveLimits, Job
from corral_worker.sandbox.lifecycle import Sandboxes
from corral_worker.sandbox.report import Report
from corral_worker.sandbox.stop import Stop

pytestmark = pytest.mark.live

LIMITS = EffectiveLimits(wall_s=40)


async def shell(sandboxes: Sandboxes, rootfs: Path, script: str, user: str = "nobody") -> Report:
    job = Job(argv=("/bin/sh", "-c", script), user=user)
    return await sandboxes.run(job, LIMITS, rootfs, Stop())


async def test_the_kernel_is_gvisors(sandboxes: Sandboxes, rootfs: Path) -> None:
    report = await shell(sandboxes, rootfs, "dmesg")

    assert b"Starting gVisor" in report.stdout.data


@pytest.mark.parametrize(
    ("user", "ids"),
    [("nobody", "65534 65534"), ("1234", "1234 1234"), ("1234:99", "1234 99"), ("0007:8", "7 8")],
)
async def test_a_program_runs_as_the_user_it_was_given(
    sandboxes: Sandboxes, rootfs: Path, user: str, ids: str
) -> None:
    report = await shell(sandboxes, rootfs, "echo $(id -u) $(id -g); id -G", user)

    assert report.stdout.data.decode() == f"{ids}\n{ids.split()[1]}\n"


async def test_a_program_has_no_capabilities_and_can_get_none(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    script = (
        "import ctypes\n"
        "for line in open('/proc/self/status'):\n"
        "    if line.startswith('Cap'): print(line.split()[0], int(line.split()[1], 16))\n"
        "print('no_new_privs', ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))\n"
    )
    job = Job(argv=("python3", "-c", script))

    report = await sandboxes.run(job, LIMITS, python_rootfs, Stop())

    found = dict(line.split() for line in report.stdout.data.decode().splitlines())
    assert found.pop("no_new_privs") == "1"
    assert {"CapEff:", "CapPrm:", "CapInh:", "CapBnd:"} <= found.keys()
    assert set(found.values()) == {"0"}


async def test_there_is_no_interface_but_loopback(sandboxes: Sandboxes, rootfs: Path) -> None:
    report = await shell(sandboxes, rootfs, "awk -F: 'NR > 2 {print $1}' /proc/net/dev")

    assert report.stdout.data.split() == [b"lo"]


@pytest.mark.parametrize(
    "address", ["('192.0.2.1', 80)", "('169.254.169.254', 80)", "('2001:db8::1', 80)"]
)
async def test_nothing_can_be_reached(
    sandboxes: Sandboxes, python_rootfs: Path, address: str
) -> None:
    script = f"import socket; socket.create_connection({address}, timeout=20)"
    job = Job(argv=("python3", "-c", script))

    report = await sandboxes.run(job, LIMITS, python_rootfs, Stop())

    assert report.stderr.data.endswith(b"No route to host\n")


async def test_the_hosts_own_services_cannot_be_reached(
    sandboxes: Sandboxes, python_rootfs: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=20)"
        job = Job(argv=("python3", "-c", script))

        report = await sandboxes.run(job, LIMITS, python_rootfs, Stop())

    assert b"ConnectionRefusedError" in report.stderr.data


@pytest.mark.parametrize("place", ["/", "/bin", "/etc", "/usr", "/var", "/root", "/sys", "/proc"])
async def test_the_root_file_system_is_read_only(
    sandboxes: Sandboxes, rootfs: Path, place: str
) -> None:
    report = await shell(sandboxes, rootfs, f"touch {place}/file")

    assert report.ending != await _done(sandboxes, rootfs)
    assert report.stdout.data == b""


async def _done(sandboxes: Sandboxes, rootfs: Path) -> object:
    return (await shell(sandboxes, rootfs, "exit 0")).ending


@pytest.mark.parametrize("place", ["/workspace", "/tmp", "/var/tmp", "/home", "/dev/shm", "."])
async def test_a_program_has_room_of_its_own(
    sandboxes: Sandboxes, rootfs: Path, place: str
) -> None:
    script = f"ls -A {place}; echo mine > {place}/file && cat {place}/file"

    report = await shell(sandboxes, rootfs, script)

    assert (report.stdout.data, report.stderr.data) == (b"mine\n", b"")


async def test_nothing_a_program_wrote_is_there_for_the_next(
    sandboxes: Sandboxes, rootfs: Path
) -> None:
    script = "find /workspace /tmp /var/tmp /home /dev/shm -mindepth 1; echo secret > /tmp/secret"

    first = await shell(sandboxes, rootfs, script)
    second = await shell(sandboxes, rootfs, script)

    assert second.stdout.data == first.stdout.data
    assert b"secret" not in second.stdout.data


async def test_the_hosts_files_are_not_there(
    sandboxes: Sandboxes, rootfs: Path, directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("of the host")
    paths = [tmp_path / "file", directory, rootfs, Path(__file__), Path("/root/.ssh")]
    script = " ".join(f"[ -e '{path}' ] && echo '{path}';" for path in paths) + " cat /proc/mounts"

    report = await shell(sandboxes, rootfs, script)

    assert not any(str(path) in report.stdout.data.decode() for path in paths)


async def test_the_host_has_another_name(sandboxes: Sandboxes, rootfs: Path) -> None:
    report = await shell(sandboxes, rootfs, "hostname; cat /etc/hostname 2>/dev/null")

    assert report.stdout.data.split()[0] == b"corral"
    assert socket.gethostname().encode() not in report.stdout.data


async def test_the_hosts_processes_are_not_there(sandboxes: Sandboxes, rootfs: Path) -> None:
    report = await shell(sandboxes, rootfs, "echo /proc/[0-9]*")

    assert report.stdout.data == b"/proc/1\n"


@pytest.mark.parametrize(
    "script",
    [
        "mount -t tmpfs tmpfs /workspace",
        "cp /bin/busybox /dev/shm/echo && /dev/shm/echo",
        "umount /tmp",
        "mknod /tmp/disk b 8 0 && cat /tmp/disk",
        "chroot /tmp /bin/sh",
        "chown 0:0 /workspace",
        "hostname other",
        "cat /dev/kmsg",
        "cat /proc/kcore",
        "echo 1 > /proc/sys/kernel/panic",
        "date -s 2000-01-01; date | grep 2000",
    ],
)
async def test_what_only_root_may_do_is_refused(
    sandboxes: Sandboxes, rootfs: Path, script: str
) -> None:
    report = await shell(sandboxes, rootfs, f"({script}) && echo done")

    assert b"done" not in report.stdout.data
    assert report.stderr.data != b""
