from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import anyio
import pytest

from corral_worker.images.errors import ImageBuildError
from corral_worker.pool.pause import (
    HELLO_OUTPUT,
    HELLO_WAIT_STATUS,
    build_pause_image,
    pause_program,
)


def test_the_program_says_hello_if_it_is_given_an_argument(tmp_path: Path) -> None:
    program = tmp_path / "corral"
    program.write_bytes(pause_program(platform.machine()))
    program.chmod(0o755)

    done = subprocess.run([program, "hello"], capture_output=True, timeout=20, check=False)

    assert (done.returncode << 8, done.stdout) == (HELLO_WAIT_STATUS, HELLO_OUTPUT)


def test_alone_the_program_waits(tmp_path: Path) -> None:
    program = tmp_path / "corral"
    program.write_bytes(pause_program(platform.machine()))
    program.chmod(0o755)

    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([program], timeout=0.3, check=False)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_it_is_an_elf_file_of_its_machine(machine: str) -> None:
    program = pause_program(machine)

    assert program.startswith(b"\x7fELF\x02\x01\x01")
    assert int.from_bytes(program[18:20], "little") == {"x86_64": 62, "aarch64": 183}[machine]
    assert program.endswith(HELLO_OUTPUT)


def test_an_unknown_machine_is_told() -> None:
    with pytest.raises(ImageBuildError, match="sparc"):
        pause_program("sparc")


async def test_the_image_is_small_and_alone(tmp_path: Path) -> None:
    await build_pause_image(tmp_path / "image")

    assert [path.name async for path in anyio.Path(tmp_path).iterdir()] == ["image"]
    assert (tmp_path / "image").stat().st_size < 64 * 1024
