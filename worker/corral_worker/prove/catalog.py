"""All attacks there are."""

from __future__ import annotations

from corral_worker.prove.attack import Attack
from corral_worker.prove.attacks_on_endings import ENDINGS
from corral_worker.prove.attacks_on_resources import RESOURCES
from corral_worker.prove.attacks_on_the_host import HOST

ATTACKS: tuple[Attack, ...] = (*RESOURCES, *ENDINGS, *HOST)
"""In the order in which they are told."""
