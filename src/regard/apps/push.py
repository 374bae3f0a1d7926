"""A model folder to the hub, where others load it by its id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regard.build import BESIDE
from regard.checkpoint import verified_folder
from regard.errors import ModelError
from regard.exported import find_exported, verified
from regard.models.hub import WEIGHTS, is_hub_id, upload

_ALWAYS = ("config.json", *BESIDE)


def push_model(
    source: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    say: Callable[[str], None],
) -> str:
    """Put a captioner on the hub, with its card, after its files were verified.

    Args:
        source: a run, a model folder, or a folder that `regard export` made.
        repository: its hub id, ``user/name``; it is made if it is not there.
        private: whether one that is made is seen by its owner alone.
        revision: a branch, made if it is not there.
        say: told what those who load it will need besides.

    Returns:
        The commit.

    Raises:
        ModelError: this is no captioner, it is damaged, or the hub is out of reach or refuses.
    """
    if not is_hub_id(repository):
        raise ModelError(f"{repository!r} is no hub id. Expected user/name, as someone/captioner.")
    if (folder := find_exported(source) if Path(source).exists() else None) is not None:
        networks = tuple(verified(folder)["files"])
    else:
        folder, described = verified_folder(source)
        networks = (WEIGHTS,)
        encoder = described["encoder"]["id"]
        if not described["trained_encoder"] and not is_hub_id(encoder):
            say(
                f"The encoder {encoder} is on this machine alone: who loads {repository} gives its "
                "weights with --encoder."
            )
    files = [name for name in (*_ALWAYS, *networks) if (folder / name).is_file()]
    return upload(folder, files, repository, private=private, revision=revision)
