"""Who owns what on the host, and the removal of what nobody owns any more."""

from __future__ import annotations
