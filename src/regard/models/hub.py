"""Files of a hub repository: fetched to this machine, found from an earlier time, put there."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from regard.errors import ModelError

WEIGHTS = "model.safetensors"
"""The file of weights, of networks small enough for one."""

SHARDED = "model.safetensors.index.json"
"""What names the files of weights of the larger ones."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
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
    needed = [name for name in files if name not in optional]
    if (found := _downloaded(repository, needed, revision)) is not None:
        return found
    folder = repository.split("/")[-1]
    elsewhere = (
        f"On a machine with network run: hf download {repository} --include '*.json' "
        f"--include '*.safetensors'{f' --revision {revision}' if revision else ''} "
        f"--local-dir {folder} . Copy that folder here and pass its "
        f"path: {option} {folder}"
    )
    if offline:
        raise ModelError(
            f"{subject} {repository!r} is not on this machine, neither as a path nor from an "
            f"earlier download, and offline use was asked for. {elsewhere}"
        )
    try:
        folders = []
        for name in files:
            path = _download(repository, name, revision)
            if path is None and name == WEIGHTS:
                path = _download_shards(repository, revision)
            if path is None and name not in optional:
                raise ModelError(
                    f"{subject} {repository!r} has no {name} on the hub"
                    f"{f' at revision {revision}' if revision else ''}. It must have "
                    f"{', '.join(needed)}. Take another revision or repository, or save the model "
                    f"in that form and pass its folder: {option} FOLDER"
                )
            folders += [path.parent] if path is not None else []
        return folders[-1]
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


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of :func:`fetch` is; none of a folder that is not from the hub."""
    named = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if named else None


def upload(
    folder: Path, files: Sequence[str], repository: str, *, private: bool, revision: str | None
) -> str:
    """Put files of a folder into a repository of models, in one commit, with the client's token.

    Args:
        folder: where they are.
        files: their names; what else is in the folder stays here.
        repository: its hub id; it is made if it is not there.
        private: whether one that is made is seen by its owner alone.
        revision: a branch, made if it is not there; the main one if not given.

    Returns:
        The commit.

    Raises:
        ModelError: the hub is out of reach, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(files), revision=revision,
            commit_message="A captioner of regard",
        )  # fmt: skip
    except Exception as error:  # see fetch: the client's errors cannot be named
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ModelError(
                f"The hub does not let this machine write to {repository!r} (HTTP {status}). Log "
                "in with `hf auth login`, or set HF_TOKEN to a token that may write there."
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{folder} could not be put into {repository!r} on the hub: {reason.rstrip('.')}. Try "
            "again, or on a machine with network."
        ) from error
    return str(commit.oid)


def check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors, before transformers says so in its own way.

    Raises:
        ModelError: there are none, naming the pickles that are there instead.
    """
    if any((folder / name).is_file() for name in (WEIGHTS, SHARDED)):
        return
    pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
    raise ModelError(
        f"{folder} has no model.safetensors"
        + (f", only {pickles}, a pickle, which is not read. " if pickles else ". ")
        + "Save the model again with safetensors, or take a folder that has the file."
    )


def _downloaded(repository: str, needed: Sequence[str], revision: str | None) -> Path | None:
    """The folder of an earlier download, if all of it is here."""
    # Imported here: who loads a folder must not pay for the hub's client.
    from huggingface_hub import try_to_load_from_cache

    def here(name: str) -> Path | None:
        path = try_to_load_from_cache(repository, name, revision=revision or "main")
        return Path(path) if isinstance(path, str) else None

    found = None
    for name in needed:
        found = here(name)
        if found is None and name == WEIGHTS and (found := here(SHARDED)) is not None:
            found = found if all(here(shard) for shard in _shards(found)) else None
        if found is None:
            return None
    return found.parent if found is not None else None


def _download(repository: str, name: str, revision: str | None) -> Path | None:
    """A file of a repository on this machine; none where the repository has no such file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    # One short question first: the download retries for 23 seconds without network.
    try:
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=_PATIENCE_S)
    except EntryNotFoundError:
        return None
    return Path(hf_hub_download(repository, name, revision=revision))


def _download_shards(repository: str, revision: str | None) -> Path | None:
    """The weights of a large network: their index, and the files that it names."""
    index = _download(repository, SHARDED, revision)
    for name in _shards(index) if index is not None else ():
        _download(repository, name, revision)
    return index


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names.

    Raises:
        ModelError: it is damaged, or names something that is not beside it.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: {error!r}. Fetch the file again.") from error
    if bad := [name for name in names if name != Path(name).name]:
        raise ModelError(f"{index} names {bad[0]!r}, which is not beside it. Take another copy.")
    return names
