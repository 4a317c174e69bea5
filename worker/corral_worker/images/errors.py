"""What an image build that failed raises."""

from __future__ import annotations


class ImageBuildError(Exception):
    """Raised if an image could not be built. No part of it is visible in the store.

    The message says which tool failed, how, its last lines, and what to do.
    """
