from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "second_apt_source.py"


def second_source(file: Path, entry: int) -> str:
    argv: list[str | Path] = [sys.executable, TOOL, f"{file}:{entry}", "trixie"]
    done = subprocess.run(argv, capture_output=True, check=True, text=True, timeout=30)
    return str(done.stdout)


def test_a_one_line_source_keeps_its_mirror_and_options(tmp_path: Path) -> None:
    file = tmp_path / "sources.list"
    file.write_text(
        "# the archive\n"
        "deb-src http://mirror.test/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg]  http://mirror.test/debian bookworm main contrib # x\n"
    )

    expected = "deb [arch=amd64 signed-by=/k.gpg]  http://mirror.test/debian trixie main\n"
    assert second_source(file, 3) == expected


def test_a_one_line_source_without_options_stays_without(tmp_path: Path) -> None:
    file = tmp_path / "sources.list"
    file.write_text("deb mirror+file:/etc/apt/mirrors bookworm main\n")

    assert second_source(file, 1) == "deb mirror+file:/etc/apt/mirrors trixie main\n"


def test_a_stanza_keeps_everything_but_its_release_and_components(tmp_path: Path) -> None:
    file = tmp_path / "debian.sources"
    file.write_text(
        "# a comment of its own is no stanza to apt\n"
        "\n"
        "Types: deb\n"
        "URIs: http://mirror.test/security\n"
        "Suites: bookworm-security\n"
        "Components: main\n"
        "\n"
        "Types: deb deb-src\n"
        "# where from\n"
        "URIs: http://mirror.test/debian\n"
        "Suites: bookworm\n"
        " bookworm-updates\n"
        "Components: main contrib\n"
        "Signed-By:\n"
        " -----BEGIN PGP PUBLIC KEY BLOCK-----\n"
        " .\n"
        " abc\n"
    )

    assert second_source(file, 2) == (
        "Types: deb\n"
        "URIs: http://mirror.test/debian\n"
        "Signed-By:\n"
        " -----BEGIN PGP PUBLIC KEY BLOCK-----\n"
        " .\n"
        " abc\n"
        "Suites: trixie\n"
        "Components: main\n"
    )


@pytest.mark.parametrize(
    "file", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda f: f.name
)
def test_locked_requirements_name_no_place_to_get_them_from(file: Path) -> None:
    requirements = [line for line in file.read_text().splitlines() if not line.startswith("#")]

    assert [line for line in requirements if "/" in line or line.startswith("-")] == []
