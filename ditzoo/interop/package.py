"""diffusers itself, which is an optional dependency."""

from __future__ import annotations

from typing import Any


def import_diffusers(user: str) -> Any:
    """The package.

    Args:
        user: what needs it, as the message should name it.

    Raises:
        ImportError: where it is missing, naming the extra to install.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f'{user} needs diffusers: pip install "ditzoo[diffusers]"') from error
    return diffusers
