"""Tells what of its arguments and its environment arrived."""

from __future__ import annotations

import os
import sys

from corral_worker.prove.programs.attempts import tell

tell(
    arguments=len(sys.argv) - 1,
    argument_bytes=sum(map(len, sys.argv[1:])),
    variables=sum(name.startswith("FLOOD_") for name in os.environ),
    variable_bytes=sum(len(v) for name, v in os.environ.items() if name.startswith("FLOOD_")),
)
