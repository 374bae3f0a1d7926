"""Files of a hub repository on this machine: those of an earlier download, or fetched now."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from regard.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PATIENCE_S = 5.0


def is_hub_id(source: str) -> bool:
    """Whether it has the form of a hub id, ``owner/name``."""
    return _HUB_ID.fullmatch(source) is not None


def fetch(
    repository: str,
    files: Sequence[str],
    *,
    optional: Collection[str] = (),
    revision: str | None = None,
    offline: bool = False,
    subject: str,
    option: str,
) -> Path:
    """The folder of a hub repository on this machine, downloaded if it is not here yet.

    Args:
        repository: its hub id.
        files: what to download, the weights last: where they are, an earlier download was complete.
        optional: those of the files that a repository may do without.
        revision: branch, tag or commit.
        offline: never ask the hub.
        subject: what is loaded, as errors call it.
        option: the option by which a folder is given instead.

    Raises:
        ModelError: a file is not here and cannot be fetched.
    """
    # Imported here: who loads a folder must not pay for the hub's client.
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import EntryNotFoundError

    needed = [name for name in files if name not in optional]
    here = [
        try_to_load_from_cache(repository, name, revision=revision or "main") for name in needed
    ]
    if all(isinstance(path, str) for path in here):
        return Path(str(here[-1])).parent
    folder = repository.split("/")[-1]
    elsewhere = (
        f"On a machine with network run: hf download {repository} --include '*.json' "
        f"--include model.safetensors --local-dir {folder} . Copy that folder here and pass its "
        f"path: {option} {folder}"
    )
    if offline:
        raise ModelError(
            f"{subject} {repository!r} is not on this machine, neither as a path nor from an "
            f"earlier download, and offline use was asked for. {elsewhere}"
        )
    try:
        for name in files:
            # One short question first: the download retries for 23 seconds without network.
            url = hf_hub_url(repository, name, revision=revision)
            try:
                get_hf_file_metadata(url, timeout=_PATIENCE_S)
            except EntryNotFoundError as error:
                if name in optional:
                    continue
                raise ModelError(
                    f"{subject} {repository!r} has no {name} on the hub"
                    f"{f' at revision {revision}' if revision else ''}. It must have "
                    f"{', '.join(needed)}. Take another revision or repository, or save the model "
                    f"in that form and pass its folder: {option} FOLDER"
                ) from error
            path = Path(hf_hub_download(repository, name, revision=revision))
        return path.parent
    except ModelError:
        raise
    except Exception as error:
        # The client's network errors belong to a library that it has changed twice (requests,
        # httpx, httpx2), so they cannot be named here; the reason is passed on in full.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{subject} {repository!r} is not on this machine and could not be fetched from the "
            f"hub: {reason.rstrip('.')}. {elsewhere}"
        ) from error
