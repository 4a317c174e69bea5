"""What an operator can set, and where it comes from.

Defaults, then a TOML file, then the environment: the later one counts. Anything
unknown, malformed or not to be honoured is refused, and the worker does not
start: a limit somebody mistyped must not turn into no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from corral import Policy, PolicyNarrowing
from corral_worker import settings_rules
from corral_worker.marks import Marks
from corral_worker.secret import Secret
from corral_worker.settings_draft import Draft, SettingsError, hint

__all__ = [
    "DEFAULT_FILE",
    "LogFormat",
    "LogLevel",
    "Settings",
    "SettingsError",
    "TenantSettings",
    "load",
]

DEFAULT_FILE: Final = Path("/etc/corral/worker.toml")
"""Read if it exists and no other file is named."""

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_PREFIX = "CORRAL_"
_REDIS_URL = "CORRAL_REDIS_URL"
_REDIS_URL_FILE = "CORRAL_REDIS_URL_FILE"
_CONFIG = "CORRAL_CONFIG"
_LIVE = "CORRAL_LIVE"
"""Asks corral's own tests for live ones, as do the ones with the prefix below."""
_TEST_PREFIX = "CORRAL_TEST_"
_ONLY_IN_FILE = frozenset({"admission", "policy", "tenants"})
_OF_A_SERVICE = re.compile(
    r"_SERVICE_HOST\Z|_SERVICE_PORT(_\w+)?\Z|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?\Z"
)
"""Ends of the variables that Kubernetes sets for each Service of a pod's namespace."""
_FROM_KUBERNETES = (
    "Kubernetes sets such for a Service whose name begins with corral: set enableServiceLinks:"
    " false in the pod's spec"
)


class TenantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for one tenant beyond what holds for all."""

    policy: Annotated[
        PolicyNarrowing, Meta(description="What this tenant may not ask for though others may.")
    ] = PolicyNarrowing()


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator can set. :func:`load` makes one from a file and the environment."""

    redis_url: Annotated[
        Secret,
        Meta(
            description="The Redis or Valkey of the queues: redis://, rediss://, sentinel:// or unix://."
        ),
    ]
    tenants: Annotated[
        dict[str, TenantSettings],
        Meta(description="Tenants with settings of their own, by name."),
    ] = {}
    slots: Annotated[int, Meta(ge=1, le=1024, description="How many jobs run at one time.")] = 4
    state_dir: Annotated[
        Path,
        Meta(description="Directory of the worker's state, absolute, at most 60 bytes long."),
    ] = Path("/var/lib/corral")
    image_dir: Annotated[
        Path | None,
        Meta(description="Directory of the images, absolute; 'images' in state_dir if unset."),
    ] = None
    runsc_path: Annotated[
        Path | None,
        Meta(description="gVisor's runsc, absolute; the one found on PATH if unset."),
    ] = None
    platform: Annotated[
        Literal["systrap", "ptrace", "kvm"],
        Meta(description="How gVisor intercepts system calls; systrap runs on every host."),
    ] = "systrap"
    cgroup_parent: Annotated[
        str,
        Meta(
            description="The cgroup that holds the sandboxes' cgroups: an absolute path in the"
            " cgroup tree, or 'delegated' for one below the worker's own."
        ),
    ] = "/corral"
    policy: Annotated[Policy, Meta(description="What any job may ask for.")] = Policy()
    admission: Annotated[
        Marks, Meta(description="What the host must have left for a job to be taken; 0: no matter.")
    ] = Marks()
    start_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="Seconds in which one sandbox must have started.")
    ] = 20.0
    warm_sandboxes: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="How many sandboxes wait, started, for a job to come; 0 for none.",
        ),
    ] = 4
    warm_memory_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory of the host for sandboxes that wait: each counts as 20 MiB.",
        ),
    ] = 256 * 1024 * 1024
    drain_grace_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Seconds running jobs get to finish after SIGTERM. Then they are stopped,"
            " which counts as an attempt.",
        ),
    ] = 30.0
    keep_result_s: Annotated[
        float, Meta(ge=1, le=2_592_000, description="Seconds a result stays in Redis.")
    ] = 3600.0
    stream_entries: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="How many results each tenant's results stream keeps; 0 for no streams.",
        ),
    ] = 1000
    lease_s: Annotated[
        float,
        Meta(
            ge=1,
            le=600,
            description="Seconds after which the jobs of a worker that died are another's.",
        ),
    ] = 10.0
    lost_leases: Annotated[
        int,
        Meta(ge=1, le=100, description="Lost leases after which a job is given up."),
    ] = 3
    reap_every_s: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="Seconds between two looks over the host for what nobody holds any more.",
        ),
    ] = 30.0
    log_format: Annotated[
        LogFormat,
        Meta(description="How the log is written; auto: for people on a terminal, else JSON."),
    ] = "auto"
    log_level: Annotated[LogLevel, Meta(description="The least severe events to log.")] = "info"

    @property
    def images(self) -> Path:
        """Directory of the images: ``image_dir``, or the default one."""
        return self.image_dir or self.state_dir / "images"

    def policy_of(self, tenant: str) -> Policy:
        """Return the policy that holds for a tenant's jobs."""
        own = self.tenants.get(tenant)
        return self.policy if own is None else self.policy.narrowed(own.policy)


def load(config: Path | None, environ: Mapping[str, str]) -> Settings:
    """Return the settings: the defaults, changed by the file, changed by the environment.

    The file is ``config``, else the one ``CORRAL_CONFIG`` names, else
    ``/etc/corral/worker.toml`` if there is one. A setting's variable is
    ``CORRAL_`` and its name in capitals; an empty one counts as unset.
    ``CORRAL_REDIS_URL_FILE`` names a file that holds the Redis URL.

    Raises:
        SettingsError: anything is unknown, malformed or cannot be honoured.
    """
    draft = Draft(Settings, _findings)
    named = config or (Path(name) if (name := environ.get(_CONFIG)) else None)
    if named is not None or not _is_absent(DEFAULT_FILE):
        draft.take_file(named or DEFAULT_FILE)
    _take_environment(draft, environ)
    draft.require(
        "redis_url",
        f"not set: give it as {_REDIS_URL}, in a file that {_REDIS_URL_FILE} names, or in the TOML"
        " file; for example redis://127.0.0.1:6379/0",
    )
    return draft.finish()


def _is_absent(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # it is there, and reading it will say what is wrong
    return False


def _take_environment(draft: Draft[Settings], environ: Mapping[str, str]) -> None:
    given = {key: value for key, value in environ.items() if key.startswith(_PREFIX) and value}
    names = {_PREFIX + name.upper(): name for name in Settings.__struct_fields__}
    settable = {key for key, name in names.items() if name not in _ONLY_IN_FILE}
    settable |= {_CONFIG, _REDIS_URL_FILE}
    for key in sorted(given):
        source = f"environment {key}"
        name = names.get(key)
        if name in _ONLY_IN_FILE:
            draft.refuse(source, name, "is a table: set it in the TOML file")
        elif key == _REDIS_URL_FILE:
            if _REDIS_URL in given:
                draft.refuse(source, "redis_url", f"is set beside {_REDIS_URL}: set one of them")
            else:
                draft.take_secret_file(source, "redis_url", Path(given[key]))
        elif name is not None:
            draft.take(source, name, given[key], strict=False)
        elif key not in {_CONFIG, _LIVE} and not key.startswith(_TEST_PREFIX):
            meant = _FROM_KUBERNETES if _OF_A_SERVICE.search(key) else hint(key, settable)
            draft.refuse(source, "", f"unknown variable; {meant}")


def _findings(name: str, value: object) -> Iterator[settings_rules.Finding]:
    match name, value:
        case "redis_url", Secret():
            yield from settings_rules.redis_url(value)
        case "tenants", dict():
            narrowings = {tenant: own.policy for tenant, own in value.items()}
            yield from settings_rules.tenants(narrowings)
        case "state_dir", Path():
            yield from settings_rules.state_dir(value)
        case "image_dir" | "runsc_path", Path():
            yield from settings_rules.absolute(value)
        case "cgroup_parent", str():
            yield from settings_rules.cgroup_parent(value)
        case "policy", Policy():
            yield from settings_rules.policy(value)
        case _:
            pass
