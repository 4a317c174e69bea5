"""The command ``corral`` itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.commands import invoke_now as invoke


def test_help_names_every_command() -> None:
    shown = invoke("--help").stdout
    names = ("run", "worker", "images", "tenants", "jobs", "dead", "demo")
    assert names == tuple(name for name in names if f"\n  {name} " in shown)


@pytest.mark.parametrize("command", ["run", "worker", "images", "tenants", "jobs", "dead", "demo"])
def test_every_command_explains_itself(command: str) -> None:
    invoked = invoke(command, "--help")
    assert invoked.exit_code == 0
    assert invoked.stdout.startswith(f"Usage: corral {command} ")


def test_the_version_is_shown() -> None:
    invoked = invoke("--version")
    assert invoked.exit_code == 0
    assert invoked.stdout.startswith("corral ")


def test_help_imports_only_what_it_needs() -> None:
    program = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from corral_worker.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('arq', 'redis', 'structlog', 'anyio', 'rich', 'corral')"
        " if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout.splitlines()[-1] == b"[]"


@pytest.mark.parametrize("package", ["click", "rich", "structlog", "anyio"])
def test_without_the_extra_it_says_what_to_install(package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = ['demo']\n"
        "from corral_worker.cli import main\n"
        "main()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    said = f"corral: the package {package} is missing: install corral[worker]\n".encode()
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, b"", said)


def test_the_module_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "corral_worker", "--version"], capture_output=True, check=True
    )
    assert ran.stdout.startswith(b"corral ")
