"""The encoder: prepared photos to a grid of regions, frozen unless asked otherwise."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.errors import ModelError
from regard.images import Preparation
from regard.models.backbones import (
    FAMILIES,
    Backbone,
    backbone_of,
    is_backbone,
    known_backbones,
    read_backbone,
)
from regard.models.devices import Precision, fast_precision
from regard.models.fast import fast_form
from regard.models.processors import ImageStatistics, read_json
from regard.models.resnet import CHANNELS, ResNet
from regard.models.small import SmallEncoder
from regard.models.sources import PretrainedResNet, locate, read_resnet

DEFAULT_ENCODER = "timm/resnet50.tv_in1k"
"""The encoder of the report: ResNet-50 with torchvision's first ImageNet weights."""


def load_encoder(
    source: str = DEFAULT_ENCODER,
    *,
    revision: str | None = None,
    image_size: int | None = None,
    resize: Literal["squash", "crop"] = "squash",
    grid: int | None = None,
    precision: Precision | Literal["auto"] = "auto",
    offline: bool = False,
) -> "Encoder":
    """Load an encoder with its weights.

    Args:
        source: ``small`` for the untrained small encoder; a hub id; a folder in timm's or
            transformers' layout; or a ``.pth`` or ``.safetensors`` file with ResNet weights.
        revision: branch, tag or commit on the hub.
        image_size: height and width in pixels that photos are resized to; without it 112 for
            ``small``, 224 for a ResNet, and for the rest what their processor says.
        resize: ``squash`` shows the encoder the whole photo, so that a gaze map covers all of it;
            ``crop`` keeps the proportions and cuts the edges off.
        grid: rows and columns of regions that the backbone's own are averaged to.
        precision: of the computation while it is frozen; ``auto`` is the device's fastest.
        offline: never ask the hub; use what an earlier download left.
    """
    backbone: ResNet | SmallEncoder | Backbone
    if source == "small":
        id, backbone = "small", SmallEncoder()
        statistics = ImageStatistics(size=112)
    else:
        place, id = locate(source, revision=revision, offline=offline)
        if place.is_dir() and is_backbone(read_json(place / "config.json")):
            backbone, statistics = read_backbone(place)
        else:
            pretrained = read_resnet(source, revision=revision, offline=offline)
            backbone = _resnet(pretrained)
            statistics = replace(pretrained.statistics, size=224)
    preparation = _prepare_as(statistics, image_size or statistics.size or 224, resize)
    return Encoder(
        id=id,
        backbone=backbone,
        preparation=preparation,
        frozen=id != "small",
        pooled=grid,
        precision=precision,
    )


def _resnet(pretrained: PretrainedResNet) -> ResNet:
    """A ResNet with these weights, of which all but the counters of batches are there."""
    with torch.device("meta"):  # random weights to be replaced would cost more than the right ones
        backbone = ResNet(
            depth=pretrained.depth, channels=pretrained.channels, patches=pretrained.patches
        )
    names = backbone.state_dict().keys()
    counters = {n: torch.tensor(0) for n in names if n.endswith("num_batches_tracked")}
    # Copies, because tensors from a file may be the file itself, which can change. Not to_empty,
    # then load: for tensors without storage that imports sympy, and much of torch.
    copies = {name: tensor.clone() for name, tensor in pretrained.tensors.items()}
    backbone.load_state_dict(copies | counters, assign=True)
    return backbone


def encoder_from_description(description: dict[str, Any], *, frozen: bool) -> "Encoder":
    """Build the encoder that ``Encoder.describe`` described, with fresh weights to load over.

    Args:
        description: what ``Encoder.describe`` returned, perhaps read back from JSON.
        frozen: whether it is only used, or trained too.
    """
    architecture, width = description["architecture"], description["width"]
    backbone: ResNet | SmallEncoder | Backbone
    if architecture == "small":
        backbone = SmallEncoder(width=width)
    elif architecture in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        channels = description.get("channels")
        backbone = ResNet(
            depth=int(architecture.removeprefix("resnet")),
            channels=None if channels is None else tuple(channels),
            patches=description.get("patches", False),
        )
    elif architecture in FAMILIES:
        backbone = backbone_of(description["config"])
    else:
        raise ModelError(
            f"The encoder has architecture {architecture!r}; this version knows small, resnet18, "
            f"resnet34, resnet50, resnet101, resnet152, {known_backbones()}. Update regard, or "
            "check the model's config.json."
        )
    return Encoder(
        id=description["id"],
        backbone=backbone,
        preparation=Preparation.from_dict(description["preparation"]),
        frozen=frozen,
        pooled=description.get("pooled"),
        precision=description.get("precision", "auto"),
        own=True,
    )


class Encoder(nn.Module):
    """A backbone with all it takes to use it again: its name, its grid, its image preparation.

    Args:
        id: what leads back to the weights: a hub id, a path, or ``small``.
        backbone: the network, from photos (B, 3, height, width) to features (B, D, H, W).
        preparation: how a photo becomes the input of the backbone.
        frozen: in eval mode whatever the modules around it do, without gradients, its weights
            never touched.
        pooled: rows and columns of the grid that the backbone's own is averaged to; none keeps it.
        precision: of the computation while it is frozen; ``auto`` is the device's fastest.
        own: whether its weights are of no other place than here: trained by us, even if frozen now.
    """

    def __init__(
        self,
        *,
        id: str,
        backbone: ResNet | SmallEncoder | Backbone,
        preparation: Preparation,
        frozen: bool,
        pooled: int | None = None,
        precision: Precision | Literal["auto"] = "auto",
        own: bool = False,
    ) -> None:
        super().__init__()
        self.id = id
        self.own = own
        self.backbone = backbone
        self.preparation = preparation
        self.frozen = frozen
        self.width = backbone.width
        self.pooled = pooled
        self.precision = precision
        whole = backbone.grid(*preparation.size)
        if pooled is not None and pooled > min(whole):
            raise ModelError(
                f"A grid of {pooled} x {pooled} regions is finer than what encoder {id!r} sees in "
                f"photos of {' x '.join(map(str, preparation.size))} pixels: "
                f"{' x '.join(map(str, whole))}. Choose a smaller encoder.grid, or a larger "
                "encoder.image_size."
            )
        self.grid = whole if pooled is None else (pooled, pooled)
        self.requires_grad_(not frozen)
        self.train(not frozen)

    def forward(self, images: Tensor) -> Tensor:
        """Prepared photos (B, 3, height, width) to regions (B, L, D), row by row."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return _regions(self.backbone(images), self.pooled)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; what is frozen or pretrained keeps its batch norms in eval mode.

        The running statistics belong to the pretrained weights. A batch of captioning photos is too
        small to estimate better ones, in fine-tuning too. A backbone of transformers stays in eval
        mode altogether: whole blocks would be left out at random, frozen ones too.
        """
        super().train(mode and not self.frozen)
        if isinstance(self.backbone, Backbone):
            self.backbone.eval()
        if isinstance(self.backbone, ResNet):
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def freeze(self) -> None:
        """From now on it is only used."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    @property
    def stored(self) -> bool:
        """Whether its weights are only here, so that a model folder has to hold them."""
        return self.own or not self.frozen or isinstance(self.backbone, SmallEncoder)

    def unfreeze(self, stages: int) -> None:
        """Let the last stages of a pretrained encoder train.

        Batch norm keeps its running statistics; its scale and shift train.

        Args:
            stages: how many, counted from the end: of the four of a ResNet or ConvNeXt, of the
                blocks of a ViT and its like.
        """
        if isinstance(self.backbone, SmallEncoder):
            raise ModelError(
                f"Encoder {self.id!r} has no stages to unfreeze: all of it is trained from the "
                "start."
            )
        if not 1 <= stages <= len(self.backbone.stages):
            raise ModelError(
                f"Cannot fine-tune {stages} stages of encoder {self.id!r}: it has "
                f"{len(self.backbone.stages)}. Choose a number from 1 to "
                f"{len(self.backbone.stages)}."
            )
        self.frozen = False
        self.requires_grad_(False)
        for stage in self.backbone.stages[-stages:]:
            stage.requires_grad_(True)

    @property
    def architecture(self) -> str:
        """``small``, ``resnet18`` to ``resnet152``, or transformers' ``model_type``."""
        return self.backbone.architecture

    @property
    def weights_hash(self) -> str:
        """A hash of the architecture and of every weight as it is now, whatever its source."""
        digest = hashlib.blake2b(self.backbone.identity.encode(), digest_size=16)
        for name, tensor in sorted(self.backbone.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                continue  # some formats leave it out, and nothing is computed from it
            values = tensor.detach().float().cpu().contiguous()
            digest.update(json.dumps([name, list(values.shape)]).encode())
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a model folder or a cache writes down about its encoder; ready for JSON."""
        more: dict[str, Any] = {} if self.pooled is None else {"pooled": self.pooled}
        if self.precision != "auto":
            more["precision"] = self.precision
        if isinstance(self.backbone, Backbone):
            more["config"] = self.backbone.config
        if isinstance(self.backbone, ResNet) and self.backbone.channels != CHANNELS:
            more["channels"] = list(self.backbone.channels)
        if isinstance(self.backbone, ResNet) and self.backbone.patches:
            more["patches"] = True
        return {
            "id": self.id,
            "architecture": self.architecture,
            "width": self.width,
            "grid": list(self.grid),
            "preparation": self.preparation.as_dict(),
            "weights_hash": self.weights_hash,
            **more,
        }

    def fast_precision(self) -> Precision:
        """What was asked for; else bf16 where the device of the weights has it, or float32."""
        if self.precision != "auto":
            return self.precision
        return fast_precision(next(self.parameters()).device)

    def fast(
        self, precision: Precision, *, photos: int = 1, batch_size: int = 8
    ) -> Callable[[Tensor], Tensor]:
        """A copy for encoding many photos (:mod:`regard.models.fast`).

        The weights are those of now; the encoder itself is left as it is.

        Args:
            precision: ``float32`` differs from ``forward`` by rounding only.
            photos: how many there are; the copy is compiled where that pays.
            batch_size: the most photos that are given at a time.

        Returns:
            A function from prepared photos (B, 3, height, width), float32 on any device, to
            regions (B, L, D), float32 on the device of the encoder. Threads may share it.
        """
        encode = fast_form(self.backbone, precision, photos=photos, batch_size=batch_size)
        return lambda images: _regions(encode(images), self.pooled)


def _regions(features: Tensor, pooled: int | None) -> Tensor:
    """The grid (B, D, H, W), averaged to a coarser one if asked, as a row-major list (B, L, D)."""
    if pooled is not None:
        features = functional.adaptive_avg_pool2d(features, pooled)  # (B, D, pooled, pooled)
    return features.flatten(2).transpose(1, 2)


def _prepare_as(
    statistics: ImageStatistics, image_size: int, resize: Literal["squash", "crop"]
) -> Preparation:
    if image_size < 32:
        raise ModelError(
            f"An image size of {image_size} pixels is too small to look at. Choose 32 or more; "
            "pretrained encoders expect 224."
        )
    return Preparation(
        size=(image_size, image_size),
        resize=resize,
        crop_fraction=statistics.crop_fraction if resize == "crop" else 1.0,
        interpolation=statistics.interpolation,
        mean=statistics.mean,
        std=statistics.std,
    )
