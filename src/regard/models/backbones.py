"""Vision backbones of transformers: ViT, CLIP, SigLIP, DINO, Swin, ConvNeXt and their families.

Each is transformers' own network, read from a folder in its layout. What differs between families
is written down here once: where the regions are among the tokens, how many pixels a region has,
and what the blocks are called. The regions are those of ``last_hidden_state``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regard.errors import ModelError
from regard.models.hub import check_weights
from regard.models.library import load_network, reading, transformers
from regard.models.processors import PROCESSORS, ImageStatistics, read_json, read_processor


@dataclass(frozen=True)
class Family:
    """What is to be known of the backbones of one ``model_type``."""

    model: str
    """The class in transformers."""
    stages: str
    """The module list of its blocks or stages, from the pixels up."""
    leading: Callable[[Any], int]
    """From the config: class, distillation and register tokens before the first region."""
    stride: Callable[[Any], int]
    """From the config: pixels to a region, along each side."""
    interpolates: bool = False
    """Whether other sizes must be asked for; the rest take them as they come."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings of the config that leave out what regions do not need."""
    pooler: bool = False
    """Whether a pooling layer must be left out by name."""


def _patch(config: Any) -> int:
    return int(config.patch_size)


def _vit(model: str, leading: int, stages: str = "layers", **others: Any) -> Family:
    return Family(model, stages, lambda _: leading, _patch, interpolates=True, **others)


def _dino(model: str, stages: str, registers: bool) -> Family:
    return Family(
        model, stages, lambda config: 1 + (config.num_register_tokens if registers else 0), _patch
    )


def _swin(model: str) -> Family:
    return Family(
        model, "encoder.layers", lambda _: 0,
        lambda config: int(config.patch_size * 2 ** (len(config.depths) - 1)),
        interpolates=True, pooler=True,
    )  # fmt: skip


def _convnext(model: str, stages: str, leading: int) -> Family:
    return Family(
        model, stages, lambda _: leading, lambda config: 4 * 2 ** (len(config.depths) - 1)
    )


FAMILIES: dict[str, Family] = {
    "vit": _vit("ViTModel", 1, pooler=True),
    "vit_msn": _vit("ViTMSNModel", 1),
    "ijepa": _vit("IJepaModel", 0, pooler=True),
    "deit": _vit("DeiTModel", 2, pooler=True),  # a class token and the teacher's
    "beit": _vit("BeitModel", 1, pooler=True),
    "clip_vision_model": _vit("CLIPVisionModel", 1, "encoder.layers"),
    "siglip_vision_model": _vit(
        "SiglipVisionModel", 0, "encoder.layers", settings=(("vision_use_head", False),)
    ),
    "dinov2": _dino("Dinov2Model", "encoder.layer", registers=False),
    "dinov2_with_registers": _dino("Dinov2WithRegistersModel", "encoder.layer", registers=True),
    "dinov3_vit": _dino("DINOv3ViTModel", "model.layer", registers=True),
    "dinov3_convnext": _convnext("DINOv3ConvNextModel", "model.stages", 1),  # the mean comes first
    "swin": _swin("SwinModel"),
    "swinv2": _swin("Swinv2Model"),
    "convnext": _convnext("ConvNextModel", "encoder.stages", 0),
    "convnextv2": _convnext("ConvNextV2Model", "encoder.stages", 0),
}
"""By ``model_type`` of the config."""

TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Models of photos and texts, of which the half that sees photos is taken."""

# What changes the features without changing the shape or the value of a weight.
_DECISIVE = (
    "hidden_act", "layer_norm_eps", "num_attention_heads", "num_heads", "window_size",
    "pretrained_window_sizes", "rope_theta", "mlp_ratio",
)  # fmt: skip
_IRRELEVANT = {
    "transformers_version", "dtype", "torch_dtype", "architectures", "id2label", "label2id",
    "_name_or_path",
}  # fmt: skip


def is_backbone(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` describes one of the families, or a model with such a tower."""
    return config.get("model_type") in FAMILIES.keys() | TOWERS.keys()


def known_backbones() -> str:
    """The families by their ``model_type``, for messages."""
    return ", ".join(sorted(FAMILIES.keys() | TOWERS.keys()))


class Backbone(nn.Module):
    """A network of transformers that keeps its regions in their places.

    Args:
        family: what is to be known of it.
        network: transformers' own, ``last_hidden_state`` of which holds the regions.
    """

    def __init__(self, family: Family, network: Any) -> None:
        super().__init__()
        self.family = family
        self.network = network
        config = network.config
        self.architecture: str = config.model_type
        self.width = int(getattr(config, "hidden_size", None) or config.hidden_sizes[-1])
        self.stride = family.stride(config)
        self._leading = family.leading(config)

    @property
    def stages(self) -> Sequence[nn.Module]:
        """Its blocks (of a Swin or ConvNeXt: stages), from the pixels up."""
        found: Any = self.network.get_submodule(self.family.stages)
        return list(found)

    @property
    def identity(self) -> str:
        """What it computes, beside the weights."""
        config = self.network.config.to_dict()
        decisive = {name: config[name] for name in _DECISIVE if name in config}
        return f"{self.architecture} {json.dumps(decisive, sort_keys=True)}"

    @property
    def config(self) -> dict[str, Any]:
        """Transformers' config, ready for JSON, without what features do not need."""
        values = json.loads(self.network.config.to_json_string(use_diff=False))
        return {name: value for name, value in values.items() if name not in _IRRELEVANT}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of regions of a prepared photo.

        Raises:
            ModelError: the size is no multiple of a region's side: what is left at the edges would
                be padded or cut off, and the gaze be drawn beside where it looked.
        """
        for side in (height, width):
            if side % self.stride or side < self.stride:
                below = side // self.stride * self.stride
                sizes = [str(s) for s in (below, below + self.stride) if s >= 32]
                raise ModelError(
                    f"An image size of {side} pixels does not fit the encoder: each region of "
                    f"{self.architecture} is {self.stride} pixels wide. Choose a multiple, such "
                    f"as {' or '.join(sizes)}."
                )
        return height // self.stride, width // self.stride

    def forward(self, images: Tensor) -> Tensor:
        """Photos (B, 3, height, width), normalised, to features (B, D, H, W)."""
        height, width = self.grid(*images.shape[-2:])
        wish = {"interpolate_pos_encoding": True} if self.family.interpolates else {}
        features: Tensor = self.network(images, **wish).last_hidden_state
        if features.ndim == 4:
            return features
        regions = features[:, self._leading :].transpose(1, 2)  # (B, D, L)
        return regions.reshape(*regions.shape[:2], height, width)  # (B, D, H, W)


def read_backbone(folder: Path) -> tuple[Backbone, ImageStatistics]:
    """A backbone with its weights, and how its photos were prepared.

    Args:
        folder: in transformers' layout, with a config that :func:`is_backbone`.

    Raises:
        ModelError: it is not complete, or does not fit together.
        MissingExtraError: transformers is not installed.
    """
    described = read_json(folder / "config.json")
    kind = TOWERS.get(described["model_type"], described["model_type"])
    statistics = read_processor(folder)
    if statistics is None:
        raise ModelError(
            f"{folder} has no {' or '.join(PROCESSORS)}, which says how its photos were prepared. "
            "Copy it from the place that the weights are from."
        )
    check_weights(folder)
    family, library = FAMILIES[kind], transformers(f"the encoder {folder}")
    model = getattr(library, family.model)
    config = reading(
        lambda: model.config_class.from_pretrained(folder), folder, subject="The encoder"
    )
    for name, value in family.settings:
        setattr(config, name, value)
    network = load_network(
        model, folder, subject="The encoder", config=config,
        **({"add_pooling_layer": False} if family.pooler else {}),
    )  # fmt: skip
    if statistics.size is None:
        statistics = replace(statistics, size=getattr(config, "image_size", None))
    return Backbone(family, network), statistics


def backbone_of(config: Mapping[str, Any]) -> Backbone:
    """A backbone of a config that :attr:`Backbone.config` gave, with random weights.

    Raises:
        ModelError: the config does not describe one.
        MissingExtraError: transformers is not installed.
    """
    family = FAMILIES[config["model_type"]]
    model = getattr(transformers(f"an encoder of the kind {config['model_type']}"), family.model)
    pooler = {"add_pooling_layer": False} if family.pooler else {}
    network = reading(
        lambda: model(model.config_class.from_dict(dict(config)), **pooler),
        Path("of a model folder"), subject="The encoder",
    )  # fmt: skip
    return Backbone(family, network.eval())
