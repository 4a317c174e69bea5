"""The option that names the worker's settings file."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The worker's TOML file.  [default: CORRAL_CONFIG, else /etc/corral/worker.toml]",
)
"""Gives the command ``config``, a path or None."""
