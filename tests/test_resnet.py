"""The residual networks against transformers', which were written independently."""

import pytest
import torch

from regard.models.resnet import LAYOUTS, ResNet
from resnet_oracle import oracle_config, oracle_name, oracle_of, random_resnet, transformers


@pytest.mark.parametrize(("depth", "size"), [(18, (64, 64)), (18, (95, 130)), (50, (64, 95))])
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
def test_every_depth_has_the_tensors_that_transformers_has(depth: int) -> None:
    with torch.device("meta"):
        ours = {oracle_name(k): v.shape for k, v in ResNet(depth=depth).state_dict().items()}
        theirs = transformers.ResNetModel(oracle_config(depth)).state_dict()
    assert ours == {name: tensor.shape for name, tensor in theirs.items()}


def test_gradients_equal_transformers() -> None:
    resnet = random_resnet(18)
    oracle = oracle_of(resnet)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    resnet(images).square().sum().backward()
    oracle(images).last_hidden_state.square().sum().backward()
    theirs = dict(oracle.named_parameters())
    for name, parameter in resnet.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[oracle_name(name)].grad)


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (63, 64), (65, 97), (224, 111), (226, 227)])
def test_the_grid_is_that_of_the_features(patches, size):
    network = ResNet(depth=18, channels=(8, 8, 8, 8), patches=patches).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, *size)).shape[2:] == network.grid(*size)
