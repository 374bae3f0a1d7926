"""transformers' residual networks, and the names that their tensors have there."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from regard.models.resnet import ResNet

transformers = pytest.importorskip("transformers")


def random_resnet(depth: int) -> ResNet:
    """A network whose batch norms are far from the identity, so that no slip in them can hide."""
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        resnet = ResNet(depth=depth).eval()
        for module in resnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight.data, module.running_var):
                    tensor.uniform_(0.5, 1.0)
                for tensor in (module.bias.data, module.running_mean):
                    tensor.uniform_(-0.1, 0.1)
    return resnet


def oracle_of(resnet: ResNet) -> Any:
    """transformers' network with the same weights."""
    with torch.device("meta"):  # its own random weights would take most of a test's time
        oracle = transformers.ResNetModel(oracle_config(resnet.depth)).eval()
    weights = {oracle_name(k): v.clone() for k, v in resnet.state_dict().items()}
    oracle.load_state_dict(weights, assign=True)
    return oracle


def oracle_config(depth: int) -> Any:
    basic = depth < 50
    return transformers.ResNetConfig(
        depths={
            18: [2, 2, 2, 2],
            34: [3, 4, 6, 3],
            50: [3, 4, 6, 3],
            101: [3, 4, 23, 3],
            152: [3, 8, 36, 3],
        }[depth],
        layer_type="basic" if basic else "bottleneck",
        hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
    )


def oracle_name(name: str) -> str:
    """transformers' name of a tensor that torchvision calls ``name``."""
    name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
    name = re.sub(
        r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name
    )
    name = name.replace("downsample.0.", "shortcut.convolution.")
    name = name.replace("downsample.1.", "shortcut.normalization.")
    name = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", name)
    return re.sub(r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization.", name)
