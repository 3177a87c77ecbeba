"""The same U-Net in torch, for timing only: conv resampling, additive time, one attention head.

Written from the same description as `ddistill.networks.UNet`; with equal fields it has the same
number of parameters, which the benchmark checks before it times anything.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """norm, SiLU, conv, time, norm, SiLU, conv, plus the input."""

    def __init__(self, c_in: int, c_out: int, embedding: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(embedding, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, embedding):
        """Returns `[B, c_out, H, W]`."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time(embedding)[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Single-head self-attention over all pixels, with a residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        """Returns the input plus what it attended to."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, 1, c, h * w).transpose(-1, -2)
        y = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return x + self.out(y.transpose(-1, -2).reshape(b, c, h, w))


class Fields(NamedTuple):
    """The fields of a U-Net, as of `ddistill.networks.unet.UNet`, and the size of its images."""

    size: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    norm_groups: int


class UNet(nn.Module):
    """A DDPM U-Net on `[B, C, H, W]`."""

    def __init__(self, in_channels: int, fields: Fields):
        super().__init__()
        size, channels, multipliers, blocks, attention, groups = fields
        self.channels = channels
        embedding = 4 * channels
        self.time = nn.Sequential(
            nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        width, widths = channels, [channels]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        def stage(c_in, c_out, attend):
            parts = [ResBlock(c_in, c_out, embedding, groups)]
            return nn.ModuleList(parts + ([Attention(c_out, groups)] if attend else []))

        for i, mult in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(stage(width, channels * mult, size in attention))
                width = channels * mult
                widths.append(width)
            if i != len(multipliers) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                widths.append(width)
                size //= 2
        self.mid = nn.ModuleList(
            [
                ResBlock(width, width, embedding, groups),
                Attention(width, groups),
                ResBlock(width, width, embedding, groups),
            ]
        )
        for i, mult in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(stage(width + widths.pop(), channels * mult, size in attention))
                width = channels * mult
            if i:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
                size *= 2
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, x, time):
        """Returns a prediction of the shape of `x`."""
        half = self.channels // 2
        steps = torch.arange(half, device=x.device, dtype=torch.float32) / (half - 1)
        angles = time[:, None] * torch.exp(-math.log(10000.0) * steps)
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        h = self.conv_in(x)
        skips = [h]
        for layer in self.down:
            h = layer(h) if isinstance(layer, nn.Conv2d) else self._stage(layer, h, embedding)
            skips.append(h)
        h = self.mid[0](h, embedding)
        h = self.mid[2](self.mid[1](h), embedding)
        for layer in self.up:
            if isinstance(layer, nn.Conv2d):
                h = layer(F.interpolate(h, scale_factor=2, mode="nearest"))
            else:
                h = self._stage(layer, torch.cat([h, skips.pop()], dim=1), embedding)
        return self.conv_out(F.silu(self.norm_out(h)))

    @staticmethod
    def _stage(layers, h, embedding):
        h = layers[0](h, embedding)
        return layers[1](h) if len(layers) > 1 else h
