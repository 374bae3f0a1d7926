"""How the photos that a network was trained on were prepared, from the files beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from regard.errors import ModelError

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Names of transformers' description of the preparation: the older one, the newer one."""


@dataclass(frozen=True)
class ImageStatistics:
    """How the photos that a network was trained on were prepared."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue in 0..1; ImageNet's unless the source says otherwise."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue in 0..1."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """The filter of the resize."""
    crop_fraction: float = 0.875
    """The part of the shorter side that was kept; of use only where photos are cropped."""
    crops: bool = False
    """Whether the network's makers cut the edges off, rather than squash the photo."""
    size: int | None = None
    """Side of the prepared photo in pixels, where the source says it."""


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        ModelError: the file is missing, damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} has no {path.name}. An encoder folder holds config.json and "
            "model.safetensors."
        ) from None
    except ValueError as error:
        raise ModelError(
            f"{path} is not readable as JSON: {error}. Fetch the file again."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, not an object. Fetch the file again."
        )
    return content


def read_processor(folder: Path) -> ImageStatistics | None:
    """The preparation that transformers' files in a folder describe; none where there are none.

    Raises:
        ModelError: a file is damaged, or describes what cannot be done here.
    """
    file = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    if file is None:
        return None
    described = read_json(file)
    described = described.get("image_processor", described)
    if described.get("do_rescale", True) is False:
        raise ModelError(
            f"{file}: do_rescale is false, photos of 0..255; networks of 0..1 can be used."
        )
    usual = ImageStatistics()
    mean = colours(described.get("image_mean", usual.mean), folder)
    std = colours(described.get("image_std", usual.std), folder)
    if described.get("do_normalize", True) is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    whole = _side(described.get("size"))
    crop = _side(described.get("crop_size")) if described.get("do_center_crop") else None
    fraction = described.get("crop_pct")  # ConvNeXt's and ResNet's, beside a size without crop
    if fraction is None:
        fraction = min(1.0, crop / whole) if crop and whole else 1.0
    return ImageStatistics(
        mean=mean,
        std=std,
        interpolation=resampling(described.get("resample", usual.interpolation), folder),
        crop_fraction=float(fraction),
        crops=crop is not None,
        size=crop or whole,
    )


def colours(values: Any, folder: Path) -> tuple[float, float, float]:
    """Three numbers, or an error that names the folder."""
    match values:
        case [int() | float() as red, int() | float() as green, int() | float() as blue]:
            return float(red), float(green), float(blue)
    raise ModelError(
        f"{folder}: {values!r} is no mean or standard deviation of red, green and blue. Expected "
        "three numbers."
    )


def resampling(name: Any, folder: Path) -> Literal["bilinear", "bicubic"]:
    """The filter of a name (timm) or a number of Pillow's (transformers)."""
    if name in ("bilinear", 2):
        return "bilinear"
    if name in ("bicubic", 3):
        return "bicubic"
    raise ModelError(
        f"{folder}: its photos are to be resized with {name!r}; only bilinear (2) and bicubic (3) "
        "are known."
    )


def _side(size: Any) -> int | None:
    """The side in pixels, in any of the ways that it was written in over the years."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) else None
