"""Reads where the host's own apt gets its packages from."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import anyio.to_thread
import msgspec

from corral_worker.images.errors import ImageBuildError
from corral_worker.images.tool import Tool

_APT_GET: Final = Tool("apt-get", package="apt")
_APT_CONFIG: Final = Tool("apt-config", package="apt")
_DEADLINE_S: Final = 30.0
_FIELDS: Final = ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN", "SOURCESENTRY")
_SIGNED_BY: Final = re.compile(r"signed-by\s*[=:]\s*(/[^\s\],]+)", re.IGNORECASE)
_PROXIES: Final = MappingProxyType(
    {"Acquire::http::Proxy": "http_proxy", "Acquire::https::Proxy": "https_proxy"}
)
# A mirror that is a snapshot needs them, for the host as for the image.
_DATE_CHECKS: Final = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")


class AptSource(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a ``sources.list``."""

    uri: str
    release: str
    components: tuple[str, ...]
    signed_by: str | None

    def __str__(self) -> str:
        options = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {options}{self.uri} {self.release} {' '.join(self.components)}"


class HostApt(msgspec.Struct, frozen=True, kw_only=True):
    """The host's distribution, its mirrors, and what it takes to reach them."""

    codename: str
    sources: tuple[AptSource, ...]
    environment: Mapping[str, str]
    options: tuple[str, ...]

    @staticmethod
    async def read() -> HostApt:
        """Ask apt. Raises :class:`ImageBuildError` if it has no index of the host's suite."""
        system = await anyio.to_thread.run_sync(platform.freedesktop_os_release)
        codename = system.get("VERSION_CODENAME", "")
        targets = await _APT_GET.run(
            "indextargets",
            "--format",
            "\t".join(f"$({field})" for field in _FIELDS),
            "Created-By: Packages",
            deadline_s=_DEADLINE_S,
        )
        sources = await anyio.to_thread.run_sync(_sources, targets, system.get("ID", ""))
        if not codename or not any(source.release == codename for source in sources):
            raise ImageBuildError(
                f"apt has no package index of this host's suite ({codename or 'unknown'}): run "
                "`apt-get update`, or name the suite's code name in /etc/apt/sources.list.d"
            )
        config = _settings(await _APT_CONFIG.run("dump", deadline_s=_DEADLINE_S))
        return HostApt(
            codename=codename,
            sources=sources,
            environment={
                variable: config[key] for key, variable in _PROXIES.items() if config.get(key)
            },
            options=tuple(f'{key} "{config[key]}"' for key in _DATE_CHECKS if key in config),
        )

    def of_suite(self, suite: str) -> tuple[AptSource, ...]:
        """Return the sources of ``suite`` with its updates and security fixes.

        For a suite the host does not use itself, its own mirrors with the
        suite's name in place of the host's.
        """
        for releases in (suite, self.codename):
            wanted = (releases, f"{releases}-updates", f"{releases}-security")
            found = tuple(source for source in self.sources if source.release in wanted)
            if any(source.release == releases for source in found):
                return tuple(
                    msgspec.structs.replace(
                        source, release=suite + source.release.removeprefix(releases)
                    )
                    for source in found
                )
        return ()


def _sources(targets: str, distribution: str) -> tuple[AptSource, ...]:
    components: dict[tuple[str, str, str | None], list[str]] = {}
    for line in targets.splitlines():
        uri, release, component, origin, entry = line.split("\t")
        # Other vendors' repositories call their suites the same.
        if origin.casefold() != distribution.casefold():
            continue
        known = components.setdefault((uri, release, _signed_by(entry)), [])
        if component not in known:
            known.append(component)
    return tuple(
        AptSource(uri=uri, release=release, components=tuple(names), signed_by=signed_by)
        for (uri, release, signed_by), names in components.items()
    )


def _signed_by(entry: str) -> str | None:
    """Return the keyring that the entry ``<file>:<number>`` names, if any."""
    file, _, number = entry.rpartition(":")
    try:
        text = Path(file).read_text(errors="replace")
    except OSError:
        return None
    # In one format the number counts lines, in the other paragraphs.
    # apt counts only paragraphs that hold fields: comments alone are none.
    fields = "\n".join(line.rstrip() for line in text.splitlines() if not line.startswith("#"))
    paragraphs = [part for part in re.split(r"\n{2,}", fields.strip("\n")) if part]
    parts = paragraphs if file.endswith(".sources") else text.splitlines()
    index = int(number) - 1 if number.isdecimal() else len(parts)
    found = _SIGNED_BY.search(parts[index]) if 0 <= index < len(parts) else None
    return found[1] if found else None


def _settings(dump: str) -> dict[str, str]:
    lines = (re.fullmatch(r'(\S+) "(.*)";', line) for line in dump.splitlines())
    return {found[1]: found[2] for found in lines if found}
