"""Sandboxes that are started before there is a job for them."""

from __future__ import annotations
