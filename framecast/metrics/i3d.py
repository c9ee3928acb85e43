# SPDX-License-Identifier: Apache-2.0
"""I3D: Inception-v1 inflated to video (Carreira and Zisserman, 2017), whose logits are the features of the FVD.

Only what evaluation needs: it never trains, and batch norm is part of the convolution before it. Names are those of the
common PyTorch port (piergiaj), in which most published weights are kept; `i3d_weights.py` reads the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Size = tuple[int, int, int]  # over time, height, width
CLASSES, SIDE, SHORTEST = 400, 224, 9  # of Kinetics-400; pixels; frames
# channels innermost: measured on a CPU, pools take a fifth of the time and the whole network three fifths
LAYOUT = torch.channels_last_3d

# channels of the branches: b0, b1a, b1b, b2a, b2b, b3b
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class I3D(nn.Module):
    """The RGB network.

    Args:
        eps: of every batch norm; a property of the weights, see `i3d_weights.py`.
        classes: rows of the logits.

    Source: kernels, channels and names as in the repositories deepmind/kinetics-i3d and piergiaj/pytorch-i3d.

    Example:
        >>> sum(p.numel() for p in I3D(eps=1e-5).parameters())
        12697264
    """

    def __init__(self, *, eps: float, classes: int = CLASSES):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2, eps=eps)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), stride=(1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, 1, eps=eps)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3, eps=eps)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), stride=(1, 2, 2))
        width = self._mixed("Mixed_3b", "Mixed_3c", width=192, eps=eps)
        self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), stride=(2, 2, 2))
        width = self._mixed("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", width=width, eps=eps)
        self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), stride=(2, 2, 2))
        width = self._mixed("Mixed_5b", "Mixed_5c", width=width, eps=eps)
        self.logits = Logits(width, classes)

    def _mixed(self, *names: str, width: int, eps: float) -> int:
        for name in names:
            self.add_module(name, Mixed(width, _MIXED[name], eps=eps))
            b0, _, b1b, _, b2b, b3b = _MIXED[name]
            width = b0 + b1b + b2b + b3b
        return width

    def endpoints(self, x: Float[Tensor, "n 3 t h w"]) -> Iterator[tuple[str, Tensor]]:
        """The output of every layer by name, then `avg_pool` (N, 1024, T') and `logits_per_step` (N, classes, T').

        The last two need maps of 7 × 7 pixels, that is clips of 224 × 224, and 9 frames or more.
        """
        x = x.contiguous(memory_format=LAYOUT)
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)
                yield name, x
        # no padding; of clips of 224 × 224 one position is left
        x = F.avg_pool3d(x, (2, 7, 7), stride=1).flatten(2)
        yield "avg_pool", x
        yield "logits_per_step", self.logits(x)

    def forward(self, x: Float[Tensor, "n 3 t 224 224"]) -> Float[Tensor, "n classes"]:
        """Logits, before any softmax, averaged over the steps of time that are left.

        Args:
            x: clips in [-1, 1], 9 frames or more.
        """
        _, out = deque(self.endpoints(x), maxlen=1).pop()  # one layer's output is kept at a time
        return out.mean(-1)


class Unit(nn.Module):
    """Convolution without bias, batch norm with fixed moments, ReLU."""

    def __init__(self, width: int, out: int, kernel: int, *, eps: float, stride: int = 1):
        super().__init__()
        self.kernel, self.stride, self.eps = (kernel,) * 3, (stride,) * 3, eps
        self.conv3d = nn.Conv3d(width, out, kernel, bias=False)
        self.bn = Norm(out)

    def forward(self, x: Tensor) -> Tensor:
        # gamma (w * x - mean) / sqrt(var + eps) + beta, as one convolution
        scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.eps)
        weight = self.conv3d.weight * scale[:, None, None, None, None]
        bias = self.bn.bias - self.bn.running_mean * scale
        if self.kernel == (1, 1, 1):  # a matrix product
            return F.linear(x.movedim(1, -1), weight.flatten(1), bias).relu_().movedim(-1, 1)
        x, padding = pad_same(x, self.kernel, self.stride)
        x = F.conv3d(x, weight, bias, stride=self.stride, padding=padding).relu_()
        return x.contiguous(memory_format=LAYOUT)  # kernels for few channels answer in another


class Norm(nn.Module):
    """The four vectors of a batch norm."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))


class MaxPool(nn.Module):
    """Largest value of each window, padded as convolutions are: all inputs follow a ReLU, so 0 is as good as -inf."""

    def __init__(self, kernel: Size, *, stride: Size):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        x, padding = pad_same(x, self.kernel, self.stride)
        return F.max_pool3d(x, self.kernel, self.stride, padding)


class Mixed(nn.Module):
    """Four branches side by side: 1×1×1; 1×1×1 then 3×3×3, twice; pooling then 1×1×1."""

    def __init__(self, width: int, channels: tuple[int, ...], *, eps: float):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = channels
        self.b0 = Unit(width, b0, 1, eps=eps)
        self.b1a = Unit(width, b1a, 1, eps=eps)
        self.b1b = Unit(b1a, b1b, 3, eps=eps)
        self.b2a = Unit(width, b2a, 1, eps=eps)
        self.b2b = Unit(b2a, b2b, 3, eps=eps)
        self.b3a = MaxPool((3, 3, 3), stride=(1, 1, 1))
        self.b3b = Unit(width, b3b, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class Logits(nn.Module):
    """The last layer, a product at every step of time; dropout before it is for training only."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.conv3d = nn.Conv3d(width, classes, 1)

    def forward(self, x: Float[Tensor, "n c t"]) -> Float[Tensor, "n classes t"]:
        return F.conv1d(x, self.conv3d.weight.flatten(2), self.conv3d.bias)


def pad_same(x: Tensor, kernel: Size, stride: Size) -> tuple[Tensor, Size]:
    """TensorFlow's padding "SAME": `x`, and what is left to be padded equally on both sides.

    On an axis of n values, max(k - s, 0) zeros in all where s divides n, else max(k - n mod s, 0); the odd one of them
    lies behind, which no symmetric padding does.

    Example:
        >>> x, both = pad_same(torch.zeros(1, 1, 4, 5, 5), (3, 3, 3), (2, 1, 2))
        >>> x.shape[2:], both
        (torch.Size([5, 5, 5]), (0, 1, 1))
    """
    totals = [max(k - (n % s or s), 0) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    uneven = [(total // 2, total - total // 2) if total % 2 else (0, 0) for total in totals]
    if any(total % 2 for total in totals):  # these axes are padded here, the others by the layer itself
        x = F.pad(x, [zeros for pad in reversed(uneven) for zeros in pad])
    t, h, w = (0 if total % 2 else total // 2 for total in totals)
    return x, (t, h, w)
