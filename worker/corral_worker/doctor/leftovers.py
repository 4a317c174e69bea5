"""Looks for what workers that died have left on the host. Removes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import anyio.to_thread
import msgspec

from corral_worker.doctor.finding import Finding, fail, ok, warn
from corral_worker.reaper.reaper import Reaper
from corral_worker.reaper.sweep import Survey
from corral_worker.reaper.trace import Counts
from corral_worker.sandbox.cgroup import CgroupError
from corral_worker.sandbox.cgroup_host import CgroupHost
from corral_worker.settings import Settings

_NAME = "leftovers"


async def look_at_leftovers(settings: Settings) -> Iterable[Finding]:
    """Say what there is that belongs to no living worker."""
    try:
        cgroups = await anyio.to_thread.run_sync(CgroupHost.of_this_host, settings.cgroup_parent)
        survey = await Reaper(state_dir=settings.state_dir, cgroups=cgroups).survey()
    except CgroupError as error:
        return (warn(_NAME, f"not looked for: {error}", "Mend the cgroups first."),)
    except TimeoutError:
        return (fail(_NAME, "a file system does not answer", "Look for a mount that hangs."),)
    return judged(survey)


def judged(survey: Survey) -> Iterator[Finding]:
    """Judge what was found."""
    dead = Counts.of(*(trace.kind for trace in survey.dead))
    if dead.total:
        seen = ", ".join(
            f"{count} {kind.replace('_', ' ')}"
            for kind, count in msgspec.structs.asdict(dead).items()
            if count
        )
        yield warn(
            _NAME,
            f"of workers that died: {seen}",
            "Find out what killed them; a worker removes what is left when it starts.",
        )
    else:
        yield ok(_NAME, "nothing is left of workers that died")
    for doubt in survey.doubts:
        yield warn(
            f"{_NAME}.doubt",
            f"{doubt.name}: {doubt.reason}",
            "Remove it by hand if no worker uses it.",
        )
