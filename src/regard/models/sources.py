"""Where pretrained ResNet weights come from: the hub, a folder or a file.

Whatever the source, the result is the same: a depth, a complete set of float32 tensors under
torchvision's names, and the image preparation that the weights were trained with.
"""

import pickle
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regard.errors import ModelError
from regard.files import replaced_folder, write_json
from regard.models.backbones import known_backbones
from regard.models.hub import WEIGHTS, check_weights, fetch, is_hub_id
from regard.models.processors import (
    PROCESSORS,
    ImageStatistics,
    colours,
    read_json,
    read_processor,
    resampling,
)
from regard.models.resnet import CHANNELS, LAYOUTS, BasicBlock, Channels, ResNet


@dataclass(frozen=True)
class PretrainedResNet:
    """A complete set of weights, whatever form it came in."""

    id: str
    """What leads back to the source: the hub id, or the absolute path."""
    depth: int
    """18, 34, 50, 101 or 152."""
    channels: Channels
    """Of its four stages."""
    patches: bool
    """Whether it begins with patches."""
    tensors: dict[str, Tensor]
    """float32 tensors under torchvision's names; the classifier is left out."""
    statistics: ImageStatistics
    """The image preparation that goes with the weights."""


def read_resnet(
    source: str, *, revision: str | None = None, offline: bool = False
) -> PretrainedResNet:
    """Read ResNet weights from a hub id, a folder or a file.

    Args:
        source: a hub id such as ``timm/resnet50.tv_in1k``; a folder in timm's or in transformers'
            layout; or a ``.pth`` or ``.safetensors`` file. A path that exists goes before a hub id
            of the same name.
        revision: branch, tag or commit on the hub.
        offline: use only what an earlier download left on this machine.
    """
    path, id = locate(source, revision=revision, offline=offline)
    if path.is_dir():
        return _read_folder(path, id=id)
    tensors = _torchvision_tensors(_read_tensors(path), where=str(path))
    depth = _depth_of(tensors, where=str(path))
    _check_complete(tensors, depth=depth, where=str(path))
    return PretrainedResNet(id, depth, CHANNELS, False, tensors, ImageStatistics())


def locate(source: str, *, revision: str | None = None, offline: bool = False) -> tuple[Path, str]:
    """Where an encoder is on this machine, fetched from the hub if need be, and its id.

    Args:
        source: see :func:`read_resnet`.
        revision: branch, tag or commit on the hub.
        offline: use only what an earlier download left on this machine.

    Returns:
        Its folder or file, and what leads back to it: the absolute path, or the hub id.
    """
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        return path, str(path.resolve())
    if not is_hub_id(source):
        raise ModelError(
            f"Encoder {source!r}: there is no such file or folder, and it is not a hub id. "
            "Expected the path of a folder with config.json and model.safetensors, the path of a "
            ".pth or .safetensors file, a hub id such as timm/resnet50.tv_in1k, or the word small."
        )
    folder = fetch(
        source,
        ("config.json", *PROCESSORS, WEIGHTS),
        optional=PROCESSORS,
        revision=revision,
        offline=offline,
        subject="Encoder",
        option="--encoder",
    )
    return folder, source


def write_resnet(folder: Path, backbone: ResNet, statistics: ImageStatistics) -> None:
    """Write a folder in timm's layout that :func:`read_resnet` reads.

    Args:
        folder: replaced if it is there.
        backbone: its weights are written in float32.
        statistics: how photos are prepared for it.
    """
    described: dict[str, Any] = {
        "architecture": backbone.architecture,
        "num_features": backbone.width,
        "model_args": {"channels": list(backbone.channels), "patches": backbone.patches},
        "pretrained_cfg": {
            "mean": list(statistics.mean),
            "std": list(statistics.std),
            "interpolation": statistics.interpolation,
            "crop_pct": statistics.crop_fraction,
        },
    }
    if backbone.channels == CHANNELS and not backbone.patches:
        del described["model_args"]
    tensors = {k: v.float().cpu().contiguous() for k, v in backbone.state_dict().items()}
    with replaced_folder(folder) as beside:
        save_file(tensors, str(beside / WEIGHTS))
        write_json(beside / "config.json", described)


# --- folders ----------------------------------------------------------------------------------


def _read_folder(folder: Path, *, id: str) -> PretrainedResNet:
    config = read_json(folder / "config.json")
    channels, patches = CHANNELS, False
    if "architecture" in config:
        channels, patches = _timm_options(config, folder)
        depth, statistics = _timm_settings(config, folder)
    elif config.get("model_type") == "resnet":
        depth, statistics = _transformers_settings(config, folder)
    else:
        raise ModelError(
            f"{folder / 'config.json'} describes no encoder that is known: it has model_type "
            f"{config.get('model_type')!r} and no architecture. Expected a timm folder "
            "(architecture: resnet18 to resnet152) or a transformers folder (model_type: resnet, "
            f"{known_backbones()})."
        )
    weights = folder / WEIGHTS
    check_weights(folder)
    tensors = _torchvision_tensors(_read_tensors(weights), where=str(weights))
    _check_complete(tensors, depth=depth, channels=channels, patches=patches, where=str(weights))
    return PretrainedResNet(id, depth, channels, patches, tensors, statistics)


def _timm_settings(config: dict[str, Any], folder: Path) -> tuple[int, ImageStatistics]:
    architecture = config["architecture"]
    depths = {f"resnet{depth}": depth for depth in LAYOUTS}
    if architecture not in depths:
        raise ModelError(
            f"{folder / 'config.json'} is for {architecture!r}; the networks that can be used are "
            f"{', '.join(depths)}."
        )
    trained = config.get("pretrained_cfg", {})
    usual = ImageStatistics()
    return depths[architecture], ImageStatistics(
        mean=colours(trained.get("mean", usual.mean), folder),
        std=colours(trained.get("std", usual.std), folder),
        interpolation=resampling(trained.get("interpolation", usual.interpolation), folder),
        crop_fraction=float(trained.get("crop_pct", usual.crop_fraction)),
    )


def _timm_options(config: dict[str, Any], folder: Path) -> tuple[Channels, bool]:
    """The channels of the stages, and whether it begins with patches."""
    options = config.get("model_args") or {}
    channels = options.get("channels", CHANNELS)
    patches = options.get("patches", False)
    known = options.keys() <= {"channels", "patches"} and isinstance(patches, bool)
    if (
        not known
        or len(channels) != len(CHANNELS)
        or any(type(c) is not int or c < 1 for c in channels)
    ):
        raise ModelError(
            f"{folder / 'config.json'} has model_args {options}; those that can be used are "
            f"channels, four numbers such as {list(CHANNELS)}, and patches, true or false."
        )
    first, second, third, last = channels
    return (first, second, third, last), patches


def _transformers_settings(config: dict[str, Any], folder: Path) -> tuple[int, ImageStatistics]:
    path = folder / "config.json"
    # ResNetModel loads weights of the v1.5 kind into a network that strides elsewhere without a
    # word, and is then a few percent off: an option that changes the network and not the shapes
    # must be refused by name.
    expected = {
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
        "hidden_act": "relu",
        "embedding_size": 64,
    }
    wrong = [
        f"{name} is {config[name]!r} and must be {value!r}"
        for name, value in expected.items()
        if config.get(name, value) != value
    ]
    if wrong:
        raise ModelError(
            f"{path} is not a ResNet v1.5: {'; '.join(wrong)}. Use another folder, such as a copy "
            "of microsoft/resnet-50."
        )
    layout = (
        config.get("layer_type", "bottleneck") == "basic",
        tuple(config.get("depths", (3, 4, 6, 3))),
    )
    depths = {(block is BasicBlock, blocks): depth for depth, (block, blocks) in LAYOUTS.items()}
    if layout not in depths:
        raise ModelError(
            f"{path}: layer_type {config.get('layer_type')!r} with depths {list(layout[1])} is "
            f"none of ResNet-{', '.join(map(str, LAYOUTS))}."
        )
    # Older folders of ResNets have no preprocessor_config.json; all were trained as usual.
    return depths[layout], read_processor(folder) or ImageStatistics()


# --- tensors ----------------------------------------------------------------------------------


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file under the names they have there, on the CPU."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} cannot be read as weights: {reason.rstrip('.')}. Expected a .safetensors "
            "file, or a .pth file that holds a state dict and nothing else."
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise ModelError(
            f"{path} holds a {type(content).__name__} that is not a plain state dict of tensors. "
            "Save model.state_dict() and use that file."
        )
    return dict(content)


def _torchvision_tensors(tensors: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The tensors in float32 under torchvision's names, without classifier and counters."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = _torchvision_name(name)
        if new in _CLASSIFIER or new.endswith("num_batches_tracked"):
            continue
        renamed[new] = tensor.float().contiguous()
    if not any(name.startswith("layer") for name in renamed):
        some = ", ".join(sorted(tensors)[:3]) or "none at all"
        raise ModelError(
            f"{where} holds no ResNet: its tensors are {some} ... Expected names such as "
            "layer1.0.conv1.weight (torchvision, timm) or "
            "encoder.stages.0.layers.0.layer.0.convolution.weight (transformers)."
        )
    return renamed


_CLASSIFIER = {"fc.weight", "fc.bias", "classifier.1.weight", "classifier.1.bias"}
_TRANSFORMERS_BLOCK = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
    r"(?:layer\.(\d+)|(shortcut))\.(convolution|normalization)\.(\w+)"
)
_TRANSFORMERS_STEM = re.compile(r"embedder\.embedder\.(convolution|normalization)\.(\w+)")


def _torchvision_name(name: str) -> str:
    """A tensor's name in torchvision's way; a name that is not transformers' way is kept."""
    name = name.removeprefix("resnet.")
    if match := _TRANSFORMERS_STEM.fullmatch(name):
        module, tensor = match.groups()
        return f"{'conv1' if module == 'convolution' else 'bn1'}.{tensor}"
    if match := _TRANSFORMERS_BLOCK.fullmatch(name):
        stage, block, layer, shortcut, module, tensor = match.groups()
        if shortcut:
            place = f"downsample.{0 if module == 'convolution' else 1}"
        else:
            place = f"{'conv' if module == 'convolution' else 'bn'}{int(layer) + 1}"
        return f"layer{int(stage) + 1}.{block}.{place}.{tensor}"
    return name


def _depth_of(tensors: Mapping[str, Tensor], *, where: str) -> int:
    """Which ResNet the tensors are of, from the number of blocks in each stage."""
    seen = {tuple(name.split(".")[:2]) for name in tensors if name.startswith("layer")}
    counts = Counter(stage for stage, _ in seen)
    blocks = tuple(counts[f"layer{stage}"] for stage in (1, 2, 3, 4))
    basic = not any(name.endswith(".conv3.weight") for name in tensors)
    for depth, (block, expected) in LAYOUTS.items():
        if (block is BasicBlock, expected) == (basic, blocks):
            return depth
    raise ModelError(
        f"{where}: stages of {list(blocks)} {'basic' if basic else 'bottleneck'} blocks are none "
        f"of ResNet-{', '.join(map(str, LAYOUTS))}."
    )


def _check_complete(
    tensors: Mapping[str, Tensor],
    *,
    depth: int,
    channels: Channels = CHANNELS,
    patches: bool = False,
    where: str,
) -> None:
    """Refuse weights that do not fit the network, naming every tensor that does not."""
    with torch.device("meta"):
        network = ResNet(depth=depth, channels=channels, patches=patches)
        expected = {
            name: tensor.shape
            for name, tensor in network.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
    problems = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in sorted(expected.items())
            if name in tensors and tensors[name].shape != shape
        ],
    }
    if any(problems.values()):
        listing = "; ".join(
            f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise ModelError(
            f"{where} does not fit ResNet-{depth}. {listing}. Use weights of a plain ResNet v1.5, "
            "or correct the architecture in config.json."
        )
