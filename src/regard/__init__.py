"""Image captioners that look while they speak.

    >>> import regard
    >>> captioner = regard.load()  # or a run, a model folder, a hub id
    >>> captioner.caption("photo.jpg").text
    'a dog runs through the grass'

Importing the package loads nothing heavy; :func:`load` does when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

DEFAULT_MODEL = "regard-small"
"""The captioner that comes with the package; it needs no network."""

if TYPE_CHECKING:
    from regard.captioner import load as load
    from regard.describe import Decoding as Decoding

__all__ = ["DEFAULT_MODEL", "Decoding", "__version__", "load"]

_HOMES = {"load": "regard.captioner", "Decoding": "regard.describe"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
