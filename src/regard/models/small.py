"""A small convolutional encoder that is trained here, from random weights.

For demonstrations on a laptop and for tests of the whole path, where no pretrained weights are at
hand: strided convolutions and residual blocks. A region sees 49 pixels of the photo's side and
learns nothing of the rest: the only normalisation is over batches, whose statistics are fixed once
it is trained. Normalising each photo by itself learns as fast and tells every region what the whole
photo holds; the gaze is then free to look anywhere.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SmallEncoder(nn.Module):
    """Photos to a grid of an eighth of their height and width.

    Args:
        width: D, the feature width of a region; a multiple of 8.
    """

    stride = 8
    """Pixels to a region, along each side."""
    architecture = identity = "small"

    def __init__(self, *, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(
            _Convolution(3, width // 4, kernel=5, stride=2),
            _Convolution(width // 4, width // 2, kernel=3, stride=2),
            _Residual(width // 2, kernel=1),
            _Convolution(width // 2, width, kernel=3, stride=2),
            _Residual(width, kernel=3),
        )
        self.placed = _Convolution(width + 2, width, kernel=3, stride=1)
        self.residual = _Residual(width, kernel=1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of regions of a photo; every halving rounds up."""
        return -(-height // self.stride), -(-width // self.stride)

    def forward(self, images: Tensor) -> Tensor:
        """Photos (B, 3, 8 H, 8 W), normalised, to features (B, D, H, W), zero or above."""
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.stem(images)  # (B, D, H, W)
        # Convolutions see a neighbourhood, not a place: captions that say "left of" need the place.
        x = torch.cat([x, _places(x)], dim=1)  # (B, D + 2, H, W)
        features: Tensor = self.residual(self.placed(x))  # (B, D, H, W)
        return features


class _Convolution(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, in_channels: int, channels: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels in, h, w) to (B, channels, h / stride, w / stride)."""
        return functional.relu(self.norm(self.conv(x)), inplace=True)


class _Residual(nn.Module):
    """A convolution beside a shortcut."""

    def __init__(self, channels: int, *, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to the same shape."""
        return functional.relu(x + self.norm(self.conv(x)), inplace=True)


def _places(x: Tensor) -> Tensor:
    """Column and row of each position of ``x`` (B, any, h, w), from -1 to 1: (B, 2, h, w)."""
    batch, _, height, width = x.shape
    columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
    rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
    places = torch.stack(
        [columns.expand(height, width), rows[:, None].expand(height, width)]
    )  # (2, h, w)
    return places.expand(batch, 2, height, width)
