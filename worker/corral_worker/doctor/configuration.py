"""The settings a worker would have here, and what is wrong with them."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from corral_worker.doctor.finding import Finding, fail, ok, warn
from corral_worker.secret import Secret
from corral_worker.settings import DEFAULT_FILE, Settings, SettingsError, load

_NO_REDIS = "redis://127.0.0.1:6379/0"
"""Stands for a URL that nobody gave; nothing connects to it."""
_OTHERS_READ = stat.S_IRGRP | stat.S_IROTH
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """Settings to look at a host with."""

    settings: Settings
    """The defaults if what was given cannot be used."""
    has_redis: bool
    """Whether :attr:`settings` names a Redis, or only stands for one that does."""
    findings: tuple[Finding, ...]


def read_configuration(config: Path | None, environ: Mapping[str, str]) -> Configuration:
    """Read the settings as a worker would, but do without a Redis, and without usable ones."""
    file = config or (Path(named) if (named := environ.get("CORRAL_CONFIG")) else DEFAULT_FILE)
    modes = tuple(_files(file, environ))
    try:
        settings = load(config, environ)
    except SettingsError as error:
        if not _only_lacks_redis(error):
            findings = tuple(
                fail("settings", str(problem), "Mend it: no worker starts with it.")
                for problem in error.problems
            )
            defaults = Settings(redis_url=Secret(_NO_REDIS))
            return Configuration(settings=defaults, has_redis=False, findings=(*findings, *modes))
        settings, has_redis = load(config, {**environ, "CORRAL_REDIS_URL": _NO_REDIS}), False
    else:
        has_redis = True
    source = str(file) if file.exists() else f"no file {file}: defaults and the environment"
    found = (ok("settings", source), *modes)
    return Configuration(settings=settings, has_redis=has_redis, findings=found)


def protection(name: str, file: Path, found: os.stat_result, *, secret: bool) -> Finding:
    """Judge who else may read or write a file of settings."""
    mode = stat.S_IMODE(found.st_mode)
    seen = f"{file}: mode {mode:04o}, owner {found.st_uid}"
    if found.st_uid not in {0, os.geteuid()} or mode & _OTHERS_WRITE:
        return fail(
            name,
            f"{seen}: others can change it, and with it what jobs may do",
            f"Run: chown root: {file} && chmod 0600 {file}",
        )
    if secret and mode & _OTHERS_READ:
        return warn(name, f"{seen}: others can read the password in it", f"Run: chmod 0600 {file}")
    return ok(name, seen)


def _only_lacks_redis(error: SettingsError) -> bool:
    return all((each.source, each.path) == ("settings", "redis_url") for each in error.problems)


def _files(file: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    places = [("settings.file", file, _holds_secret(file))]
    if named := environ.get("CORRAL_REDIS_URL_FILE"):
        places.append(("settings.secret", Path(named), True))
    for name, path, secret in places:
        try:
            yield protection(name, path, path.stat(), secret=secret)
        except OSError:
            continue  # there is none, or reading the settings has said why not


def _holds_secret(file: Path) -> bool:
    try:
        return "redis_url" in tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
