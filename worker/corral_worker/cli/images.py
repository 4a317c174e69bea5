"""``corral images``."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

import anyio
import click
import msgspec
from rich.text import Text

from corral import CorralError
from corral_worker.cli.config_option import config_option
from corral_worker.cli.tables import console, table
from corral_worker.cli.units import size_text
from corral_worker.images.builder import ImageBuilder, default_recipes
from corral_worker.images.errors import ImageBuildError
from corral_worker.images.recipe import DebianPackages, Directory, OciImage, Recipe
from corral_worker.images.store import ImageStore
from corral_worker.settings import SettingsError, load

T = TypeVar("T")


class _Sources(TypedDict):
    name: str
    debian_packages: tuple[str, ...]
    suite: str | None
    directory: Path | None
    oci: str | None
    missing: bool


_DIGEST_SHOWN = len("sha256:") + 12
_NO_REDIS = "unix:///not/used"


@click.group()
@config_option
@click.pass_context
def images(ctx: click.Context, *, config: Path | None) -> None:
    """Build, list and remove the images of this host.

    They lie in the worker's image_dir, so the worker's settings are read.
    """
    ctx.obj = config


@images.command()
@click.argument("name")
@click.option(
    "--debian-packages",
    multiple=True,
    metavar="PACKAGES",
    help="Minimal Debian with these packages: separated by commas, or repeated.",
)
@click.option("--suite", metavar="NAME", help="Debian's release.  [default: this host's]")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="Copy of a directory of this host.",
)
@click.option("--oci", metavar="REFERENCE", help="OCI image, such as alpine:3.20, or a layout.")
@click.option("--missing", is_flag=True, help="Do nothing if the host has an image of that name.")
@click.pass_obj
def build(config: Path | None, /, **options: Unpack[_Sources]) -> None:
    """Build the image NAME, and let NAME mean it from now on.

    Without a source it is one of the images every host should have: base or
    python.
    """
    name = options["name"]
    recipe = _recipe(name, options)
    store = _store(config)
    if options["missing"] and any(image.name == name for image in _finish(store.list)):
        return
    builder = ImageBuilder(store)
    click.echo(f"building {name} from {recipe.source} ...", err=True)
    image = _finish(partial(builder.build, recipe, name=name))
    click.echo(f"{name}  {image.digest}  {size_text(image.size_bytes)}")


@images.command(name="list")
@click.option("--json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def list_images(config: Path | None, /, *, json: bool) -> None:
    """List the images, by name; the ones without a name come last."""
    found = _finish(_store(config).list)
    if json:
        click.echo(msgspec.json.encode(found, enc_hook=str))
        return
    rows = table("name", "digest", "size", "created", "source")
    for image in found:
        rows.add_row(
            Text(image.name or "-"),
            Text(image.digest[:_DIGEST_SHOWN]),
            size_text(image.size_bytes),
            f"{image.created_at:%Y-%m-%d %H:%M}",
            Text(image.source),
        )
    console().print(rows)


@images.command()
@click.argument("reference")
@click.pass_obj
def remove(config: Path | None, /, *, reference: str) -> None:
    """Remove a name, or a sha256: digest with all its names.

    An image goes with its last name. Jobs that run on it are not disturbed.
    """
    for gone in _finish(partial(_store(config).remove, reference)):
        click.echo(f"removed {gone}")


def _recipe(name: str, options: _Sources) -> Recipe:
    packages = [p for text in options["debian_packages"] for p in text.replace(",", " ").split()]
    directory, oci, suite = options["directory"], options["oci"], options["suite"]
    if sum(map(bool, (packages, directory, oci))) > 1:
        raise click.UsageError("name one source: --debian-packages, --directory or --oci")
    if suite and not packages:
        raise click.UsageError("--suite goes with --debian-packages")
    try:
        if packages:
            return DebianPackages(packages=tuple(packages), suite=suite)
        if directory is not None:
            return Directory(path=directory)
        if oci is not None:
            return OciImage(reference=oci)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    defaults = default_recipes()
    if name not in defaults:
        raise click.UsageError(
            f"name a source for {name!r}: only {' and '.join(defaults)} have one of their own"
        )
    return defaults[name]


def _store(config: Path | None) -> ImageStore:
    # No image needs a Redis: the settings are to be right, that one aside.
    environ = {k: v for k, v in os.environ.items() if k != "CORRAL_REDIS_URL_FILE"}
    try:
        settings = load(config, environ | {"CORRAL_REDIS_URL": _NO_REDIS})
    except SettingsError as error:
        for line in str(error).splitlines():
            click.echo(f"corral: {line}", err=True)
        sys.exit(2)
    return ImageStore(settings.images)


def _finish(work: Callable[[], Awaitable[T]]) -> T:
    try:
        return anyio.run(work)
    except (CorralError, ImageBuildError, OSError) as error:
        raise click.ClickException(str(error)) from error
