"""The small encoder that is trained here."""

import pytest
import torch

from regard.models.small import SmallEncoder


@pytest.mark.parametrize("size", [(112, 112), (96, 160)])
def test_a_region_is_eight_pixels(size: tuple[int, int]) -> None:
    features = SmallEncoder(width=16)(torch.randn(2, 3, *size))
    assert features.shape == (2, 16, size[0] // 8, size[1] // 8)


def test_alone_equals_in_a_batch() -> None:
    torch.manual_seed(0)
    encoder = SmallEncoder(width=16)
    encoder(torch.randn(4, 3, 112, 112))  # statistics that are not those of the beginning
    encoder.eval()
    photos = torch.randn(4, 3, 112, 112)
    alone = torch.cat([encoder(photo[None]) for photo in photos])
    torch.testing.assert_close(encoder(photos), alone)


def test_a_region_knows_nothing_of_what_is_far_away() -> None:
    """Else its words could be said while looking elsewhere."""
    torch.manual_seed(0)
    encoder = SmallEncoder(width=16).eval()
    photo = torch.randn(1, 3, 112, 112)
    changed = photo.clone()
    changed[:, :, 64:, 64:] += 1
    before, after = encoder(photo), encoder(changed)
    torch.testing.assert_close(before[:, :, :4, :4], after[:, :, :4, :4], rtol=0, atol=0)
    assert not torch.allclose(before[:, :, 10, 10], after[:, :, 10, 10])


def test_every_weight_gets_a_gradient() -> None:
    torch.manual_seed(0)
    encoder = SmallEncoder(width=16)
    encoder(torch.randn(2, 3, 112, 112)).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_places_tell_equal_neighbourhoods_apart() -> None:
    # A plain photo looks the same everywhere away from its border: only the place differs there.
    torch.manual_seed(0)
    features = SmallEncoder(width=16)(torch.full((1, 3, 224, 224), 0.5))
    middle = features[0, :, 13:15, 13:15].flatten(1)
    assert not torch.allclose(middle[:, :1], middle[:, 1:], atol=1e-4)
