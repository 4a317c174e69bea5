"""All that is looked at before a host gets jobs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from corral_worker.doctor import gvisor, leftovers, limits, machine, redis_server, stock
from corral_worker.doctor.check import Check, Look, in_thread
from corral_worker.doctor.configuration import Configuration
from corral_worker.doctor.finding import Finding

# Ends looks that hang, on slow machines too.
_WITHIN_S = 20.0
_BOOT_WITHIN_S = 180.0
_VERIFY_WITHIN_S = 60.0


def checks(configuration: Configuration) -> list[Check]:
    """Return the checks of this host, with the settings that its worker would have."""
    settings = configuration.settings

    async def read() -> Iterable[Finding]:
        return configuration.findings

    async def no_redis() -> Iterable[Finding]:
        return (redis_server.not_configured(),)

    async def leftovers_then_sandbox() -> Iterable[Finding]:
        # In this order, for a worker that starts removes what is left.
        return (
            *await leftovers.look_at_leftovers(settings),
            *await gvisor.look_at_sandbox(settings),
        )

    redis = partial(redis_server.look_at_redis, settings) if configuration.has_redis else no_redis
    quick: tuple[tuple[str, Look], ...] = (
        ("settings", read),
        ("host.kernel", in_thread(machine.look_at_kernel)),
        ("host.rights", in_thread(machine.look_at_rights)),
        ("host.cpus", in_thread(partial(machine.look_at_processors, settings))),
        ("host.memory", in_thread(partial(machine.look_at_memory, settings))),
        ("host.disk", in_thread(partial(machine.look_at_disk, settings))),
        ("host.descriptors", in_thread(partial(machine.look_at_descriptors, settings))),
        ("host.tasks", in_thread(partial(machine.look_at_tasks, settings))),
        ("host.pressure", in_thread(machine.look_at_pressure)),
        ("host.clock", in_thread(machine.look_at_clock)),
        ("cgroups", in_thread(partial(limits.look_at_limits, settings))),
        ("runsc.platform", in_thread(partial(gvisor.look_at_platform, settings))),
        ("tools", stock.look_at_tools),
    )
    slow: tuple[tuple[str, Look, float], ...] = (
        ("runsc.version", partial(gvisor.look_at_runsc, settings), _WITHIN_S),
        ("runsc.sandbox", leftovers_then_sandbox, _BOOT_WITHIN_S),
        ("images", partial(stock.look_at_images, settings), _VERIFY_WITHIN_S),
        ("redis", redis, _WITHIN_S),
    )
    return [
        *(Check(name=name, look=look, within_s=_WITHIN_S) for name, look in quick),
        *(Check(name=name, look=look, within_s=within) for name, look, within in slow),
    ]
