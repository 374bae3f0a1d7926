"""ResNet-18, 34, 50, 101 and 152, from pixels to the last feature map.

The networks of He et al., "Deep Residual Learning for Image Recognition" (2015), in the form known
as v1.5: a bottleneck halves the resolution in its 3x3 convolution instead of its first 1x1. The
final pooling and the classifier are left out. Modules carry torchvision's names, so its weight
files load without translation.
"""

import torch
from torch import Tensor, nn

Channels = tuple[int, int, int, int]


class ResNet(nn.Module):
    """A residual network that keeps the spatial grid of its last stage.

    Args:
        depth: 18, 34, 50, 101 or 152.
        channels: of the 3x3 convolutions of the four stages; none: :data:`CHANNELS`.
        patches: begin with a convolution over overlapping patches of 8 x 8 pixels, 4 apart, in
            place of the 7x7 convolution and the pooling. Most of the memory that a narrow network
            moves goes through those two.
    """

    stride = 32
    """Pixels to a region, along each side."""

    def __init__(
        self, *, depth: int, channels: Channels | None = None, patches: bool = False
    ) -> None:
        super().__init__()
        block, blocks = LAYOUTS[depth]
        self.depth = depth
        self.channels = channels = channels or CHANNELS
        self.patches = patches
        self.architecture = self.identity = f"resnet{depth}"
        outer = [c * block.expansion for c in channels]
        self.width = outer[-1]
        kernel, stride, padding = (8, 4, 2) if patches else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride=stride, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = (
            nn.Identity() if patches else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        )
        self.layer1 = _stage(block, 64, channels[0], blocks[0], stride=1)
        self.layer2 = _stage(block, outer[0], channels[1], blocks[1], stride=2)
        self.layer3 = _stage(block, outer[1], channels[2], blocks[2], stride=2)
        self.layer4 = _stage(block, outer[2], channels[3], blocks[3], stride=2)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """The four stages, from the pixels up."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of regions of a photo; every halving rounds up."""
        if self.patches:  # pixels beyond the last whole patch are not seen
            height, width = (4 * ((side - 4) // 4 + 1) for side in (height, width))
        return -(-height // self.stride), -(-width // self.stride)

    def forward(self, images: Tensor) -> Tensor:
        """Photos (B, 3, 32 H, 32 W), normalised, to features (B, D, H, W), zero or above."""
        x = torch.relu_(self.bn1(self.conv1(images)))  # (B, 64, 16 H, 16 W), or as the next
        x = self.maxpool(x)  # (B, 64, 8 H, 8 W)
        x = self.layer1(x)  # (B, D/8, 8 H, 8 W), at the usual channels
        x = self.layer2(x)  # (B, D/4, 4 H, 4 W)
        x = self.layer3(x)  # (B, D/2, 2 H, 2 W)
        features: Tensor = self.layer4(x)  # (B, D, H, W)
        return features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and 34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        # A convolution is registered right before its batch norm everywhere in this file: whoever
        # folds the pairs for speed relies on that order.
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels in, h, w) to (B, channels, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return torch.relu_(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: the block of ResNet-50, 101 and 152."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels in, h, w) to (B, 4 channels, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return torch.relu_(x + shortcut)


CHANNELS = (64, 128, 256, 512)
"""The usual channels of the four stages."""

LAYOUTS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Depth to the kind of block and the number of blocks in each of the four stages."""


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    blocks: int,
    *,
    stride: int,
) -> nn.Sequential:
    first = block(in_channels, channels, stride=stride)
    rest = (block(channels * block.expansion, channels, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _shortcut(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential | None:
    """A projection where the shape changes, nothing where it does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )
