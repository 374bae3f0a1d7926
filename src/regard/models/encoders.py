"""The encoder: prepared photos to a grid of regions, frozen unless asked otherwise."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from regard.errors import ModelError
from regard.images import Preparation
from regard.models.devices import Precision, fast_precision
from regard.models.fast import fast_form
from regard.models.resnet import ResNet
from regard.models.small import SmallEncoder
from regard.models.sources import ImageStatistics, read_resnet

DEFAULT_ENCODER = "timm/resnet50.tv_in1k"
"""The encoder of the report: ResNet-50 with torchvision's first ImageNet weights."""


def load_encoder(
    source: str = DEFAULT_ENCODER,
    *,
    revision: str | None = None,
    image_size: int | None = None,
    resize: Literal["squash", "crop"] = "squash",
    offline: bool = False,
) -> "Encoder":
    """Load an encoder with its weights.

    Args:
        source: ``small`` for the untrained small encoder; a hub id; a folder in timm's or
            transformers' layout; or a ``.pth`` or ``.safetensors`` file with ResNet weights.
        revision: branch, tag or commit on the hub.
        image_size: height and width in pixels that photos are resized to; 224, or 112 for
            ``small``.
        resize: ``squash`` shows the encoder the whole photo, so that a gaze map covers all of it;
            ``crop`` keeps the proportions and cuts the edges off.
        offline: never ask the hub; use what an earlier download left.
    """
    if source == "small":
        preparation = _prepare_as(ImageStatistics(), image_size or 112, resize)
        return Encoder(id="small", backbone=SmallEncoder(), preparation=preparation, frozen=False)
    pretrained = read_resnet(source, revision=revision, offline=offline)
    with torch.device("meta"):  # random weights to be replaced would cost more than the right ones
        backbone = ResNet(depth=pretrained.depth)
    names = backbone.state_dict().keys()
    counters = {n: torch.tensor(0) for n in names if n.endswith("num_batches_tracked")}
    # Copies, because tensors from a file may be the file itself, which can change. Not to_empty,
    # then load: for tensors without storage that imports sympy, and much of torch.
    copies = {name: tensor.clone() for name, tensor in pretrained.tensors.items()}
    backbone.load_state_dict(copies | counters, assign=True)
    preparation = _prepare_as(pretrained.statistics, image_size or 224, resize)
    return Encoder(id=pretrained.id, backbone=backbone, preparation=preparation, frozen=True)


def encoder_from_description(description: dict[str, Any], *, frozen: bool) -> "Encoder":
    """Build the encoder that ``Encoder.describe`` described, with fresh weights to load over.

    Args:
        description: what ``Encoder.describe`` returned, perhaps read back from JSON.
        frozen: whether it is only used, or trained too.
    """
    architecture, width = description["architecture"], description["width"]
    backbone: ResNet | SmallEncoder
    if architecture == "small":
        backbone = SmallEncoder(width=width)
    elif architecture in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        backbone = ResNet(depth=int(architecture.removeprefix("resnet")))
    else:
        raise ModelError(
            f"The encoder has architecture {architecture!r}; this version knows small, resnet18, "
            "resnet34, resnet50, resnet101 and resnet152. Update regard, or check the model's "
            "config.json."
        )
    preparation = Preparation.from_dict(description["preparation"])
    return Encoder(id=description["id"], backbone=backbone, preparation=preparation, frozen=frozen)


class Encoder(nn.Module):
    """A backbone with all it takes to use it again: its name, its grid, its image preparation.

    Args:
        id: what leads back to the weights: a hub id, a path, or ``small``.
        backbone: the network, from photos (B, 3, height, width) to features (B, D, H, W).
        preparation: how a photo becomes the input of the backbone.
        frozen: in eval mode whatever the modules around it do, without gradients, its weights
            never touched.
    """

    def __init__(
        self,
        *,
        id: str,
        backbone: ResNet | SmallEncoder,
        preparation: Preparation,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.id = id
        self.backbone = backbone
        self.preparation = preparation
        self.frozen = frozen
        self.width = backbone.width
        height, width = preparation.size
        # Every halving of a backbone rounds up.
        self.grid = (-(-height // backbone.stride), -(-width // backbone.stride))
        self.requires_grad_(not frozen)
        self.train(not frozen)

    def forward(self, images: Tensor) -> Tensor:
        """Prepared photos (B, 3, height, width) to regions (B, L, D), row by row."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return _regions(self.backbone(images))

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; what is frozen or pretrained keeps its batch norms in eval mode.

        The running statistics belong to the pretrained weights. A batch of captioning photos is too
        small to estimate better ones, in fine-tuning too.
        """
        super().train(mode and not self.frozen)
        if isinstance(self.backbone, ResNet):
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def unfreeze(self, stages: int) -> None:
        """Let the last stages of a ResNet train.

        Batch norm keeps its running statistics; its scale and shift train.

        Args:
            stages: how many of the four stages, counted from the end.
        """
        if not isinstance(self.backbone, ResNet):
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
        """``resnet18`` to ``resnet152``, or ``small``."""
        if isinstance(self.backbone, ResNet):
            return f"resnet{self.backbone.depth}"
        return "small"

    @property
    def weights_hash(self) -> str:
        """A hash of the architecture and of every weight as it is now, whatever its source."""
        digest = hashlib.blake2b(self.architecture.encode(), digest_size=16)
        for name, tensor in sorted(self.backbone.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                continue  # some formats leave it out, and nothing is computed from it
            values = tensor.detach().float().cpu().contiguous()
            digest.update(json.dumps([name, list(values.shape)]).encode())
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a model folder or a cache writes down about its encoder; ready for JSON."""
        return {
            "id": self.id,
            "architecture": self.architecture,
            "width": self.width,
            "grid": list(self.grid),
            "preparation": self.preparation.as_dict(),
            "weights_hash": self.weights_hash,
        }

    def fast_precision(self) -> Precision:
        """``bf16`` where the device of the weights computes it in hardware, else ``float32``."""
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
        return lambda images: _regions(encode(images))


def _regions(features: Tensor) -> Tensor:
    """The grid (B, D, H, W) as a row-major list of regions (B, L, D)."""
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
