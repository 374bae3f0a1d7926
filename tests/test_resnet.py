"""The residual networks against transformers', which were written independently."""

import re

import pytest
import torch
from torch import Tensor, nn

from regard.models.resnet import LAYOUTS, ResNet

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("size", [(64, 64), (95, 130)])
def test_every_bit_equals_transformers(depth: int, size: tuple[int, int]) -> None:
    resnet = random_resnet(depth)
    oracle = oracle_of(resnet)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = resnet(images)
        expected = oracle(images).last_hidden_state
    assert torch.equal(features, expected)
    assert features.shape == (2, resnet.width, -(-size[0] // 32), -(-size[1] // 32))


@pytest.mark.parametrize("depth", sorted(LAYOUTS))
def test_tensors_are_named_as_transformers_would_have_it(depth: int) -> None:
    with torch.device("meta"):
        shapes = {
            oracle_name(name): value.shape
            for name, value in ResNet(depth=depth).state_dict().items()
        }
        oracle = transformers.ResNetModel(oracle_config(depth))
    assert shapes == {name: value.shape for name, value in oracle.state_dict().items()}


def test_gradients_equal_transformers() -> None:
    resnet = random_resnet(18)
    oracle = oracle_of(resnet)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    resnet(images).square().sum().backward()
    oracle(images).last_hidden_state.square().sum().backward()
    gradients = dict(oracle.named_parameters())
    for name, parameter in resnet.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[oracle_name(name)].grad)


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
                    tensor.uniform_(-0.5, 0.5)
    return resnet


def oracle_of(resnet: ResNet) -> nn.Module:
    oracle = transformers.ResNetModel(oracle_config(resnet.depth)).eval()
    renamed: dict[str, Tensor] = {oracle_name(k): v for k, v in resnet.state_dict().items()}
    oracle.load_state_dict(renamed)
    return oracle


def oracle_config(depth: int):
    depths = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
    basic = depth < 50
    return transformers.ResNetConfig(
        depths=depths.get(depth, [3, 8, 36, 3]),
        layer_type="basic" if basic else "bottleneck",
        hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
    )


def oracle_name(name: str) -> str:
    name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
    name = re.sub(
        r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name
    )
    name = name.replace("downsample.0.", "shortcut.convolution.")
    name = name.replace("downsample.1.", "shortcut.normalization.")
    name = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", name)
    return re.sub(r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization.", name)
