"""transformers, called in one way: quietly, from a folder, safetensors alone, no foreign code.

It takes most of four seconds to import, so it is imported where something of it is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from regard.errors import MissingExtraError, ModelError

SAFELY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""What every load is told: nothing may be asked of the hub, and no code of strangers run."""

_MASKS = "mask_token"  # of pre-training; without effect on a whole photo


def transformers(feature: str) -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed; ``feature`` needs it.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(feature, "hf") from error


def load_network(kind: Any, folder: Path, *, subject: str, **settings: Any) -> Any:
    """A network in float32 with all its weights; transformers itself fills gaps at random.

    Args:
        kind: a model class of transformers.
        folder: with ``config.json`` and safetensors.
        subject: what is loaded, as errors call it.
        settings: for ``from_pretrained``.

    Raises:
        ModelError: the folder cannot be loaded, or lacks tensors.
    """
    import torch

    model, report = reading(
        lambda: kind.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True,
            **SAFELY, **settings,
        ),
        folder, subject=subject,
    )  # fmt: skip
    if missing := sorted(name for name in report["missing_keys"] if not name.endswith(_MASKS)):
        raise ModelError(
            f"{subject} {folder} lacks {len(missing)} tensors, the first is {missing[0]}. Fetch "
            "its weights again, or take a folder whose config.json and weights belong together."
        )
    return model.eval().requires_grad_(False)


def reading(read: Callable[[], Any], folder: Path, *, subject: str) -> Any:
    """What a loader of transformers returns, its many errors made one clear line."""
    try:
        with quiet():
            return read()
    except (OSError, ValueError, TypeError, RuntimeError, LookupError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{subject} {folder} cannot be loaded: {reason.rstrip('.')}. Fetch its files again."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bar and its warnings: what matters is checked and said in our words."""
    logging = importlib.import_module("transformers").utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
