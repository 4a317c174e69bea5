"""The group of all commands. A command's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module, metadata
from types import MappingProxyType

import click

_SUMMARIES = MappingProxyType(
    {
        "run": "Run one program in a sandbox and show how it ended.",
        "worker": "Run jobs from the queues on this host.",
        "images": "Build, list and remove the images of this host.",
        "tenants": "Set and show what tenants may do: shares, caps, policies.",
        "jobs": "Show why a job waits or where it runs, or cancel it.",
        "dead": "Show, retry or drop jobs that were given up.",
        "doctor": "Check this host, and prove that sandboxes hold on it.",
        "demo": "Show it all: a worker, and jobs that end in different ways.",
    }
)


class _LazyGroup(click.Group):
    """Knows its commands' names and summaries without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _SUMMARIES:
            return None
        command: object = getattr(import_module(f"corral_worker.cli.{cmd_name}"), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"corral_worker.cli.{cmd_name} holds no command of its name")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: object) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    try:
        version = metadata.version("corral")
    except metadata.PackageNotFoundError:
        version = "(run from its sources)"
    click.echo(f"corral {version}")
    ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def corral() -> None:
    """Run untrusted code from Redis queues, each job in a fresh gVisor sandbox."""
