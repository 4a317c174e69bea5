"""Tables that people read, on a terminal or in a file."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_PIPED_WIDTH = 120


def console() -> Console:
    """Return a console for standard output: plain, and wide enough, where it is no terminal."""
    fits = Console(highlight=False, emoji=False)
    if fits.is_terminal:
        return fits
    return Console(highlight=False, emoji=False, width=_PIPED_WIDTH)


def table(*columns: str) -> Table:
    """Return an empty table with these columns."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
