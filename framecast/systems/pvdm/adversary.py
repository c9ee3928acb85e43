# SPDX-License-Identifier: Apache-2.0
"""What the autoencoder's second phase learns against: patch discriminators of frames and of clips, and their losses.

The text at hand names no discriminator; layers, the hinge and feature matching are those of the official code.
Hidden here: batch norm whose moments are those of the rows on all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from framecast.nn.processes import several, summed
from framecast.video import Video

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
MOST_CHANNELS = 512
SLOPE = 0.2  # of LeakyReLU


class Discriminator(nn.Module):
    """Says of every patch how real it looks, above 0 for real: of frames (dims 2) or of clips (dims 3).

    Stages of a convolution with kernel 4, batch norm (not in the first and last) and LeakyReLU (not in the last); all
    but the last two halve every axis.

    Args:
        channels: of the frames.
        dims: 2 or 3.
        width: channels of the first stage; each later one has twice as many as the one before, up to 512.
        halvings: stages that halve.

    Source: Isola et al. 2017, PatchGAN; widths and paddings as in the official code.

    Example:
        >>> network = Discriminator(channels=3, dims=3, width=4)
        >>> [tuple(x.shape) for x in network(torch.zeros(2, 16, 3, 24, 24))][-1]
        (2, 1, 5, 6, 6)
    """

    def __init__(self, *, channels: int, dims: Literal[2, 3], width: int = 64, halvings: int = 3):
        super().__init__()
        self.dims = dims
        widths = [min(width << k, MOST_CHANNELS) for k in range(halvings + 1)]
        self.stages = nn.ModuleList()
        for k, (before, after) in enumerate(zip([channels, *widths], [*widths, 1], strict=True)):
            conv = CONVOLUTIONS[dims](before, after, 4, stride=2 if k < halvings else 1, padding=2)
            norm = [BatchNorm(after)] if 0 < k <= halvings else []
            act = [nn.LeakyReLU(SLOPE)] if k <= halvings else []
            self.stages.append(nn.Sequential(conv, *norm, *act))
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "b *t c h w"]) -> list[Tensor]:
        """Outputs of all stages, (B, C, ...); the last is the verdict on every patch.

        Args:
            x: frames (B, C, H, W) or clips (B, T, C, H, W), in -1 to 1.
        """
        if x.ndim != self.dims + 2:
            wanted = {2: "frames (B, C, H, W)", 3: "clips (B, T, C, H, W)"}[self.dims]
            raise ValueError(f"a tensor of shape {tuple(x.shape)} was given to a discriminator of {wanted}.")
        if self.dims == 3:
            x = x.transpose(1, 2)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the moments of the rows of all processes; alone, it is torch's.

    DEVIATES: torch's synchronised batch norm, which the official code takes, runs on CUDA only.
    """

    def forward(self, x: Float[Tensor, "b c *axes"]) -> Float[Tensor, "b c *axes"]:
        if not self.training or not several():
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        values = x.float()
        count = summed(values.new_tensor(values[:, 0].numel()))
        mean = summed(values.sum(axes)) / count
        centred = values - _like(mean, values)
        variance = summed(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(_like(self.bias, values), centred, _like(scale, values)).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 3:
            raise ValueError(f"a tensor of shape {tuple(input.shape)} has no positions to take moments over.")


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator minimises: mean of (relu(1 - real) + relu(1 + fake)) / 2 over its verdicts.

    Example:
        >>> hinge(torch.tensor([2.0, 0.0]), torch.tensor([0.0])).item()
        0.75
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def deception(fake: Tensor) -> Tensor:
    """What the autoencoder minimises: minus the mean verdict on what it made."""
    return -fake.mean()


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of every stage's output but the verdict, added over stages.

    Args:
        real: outputs of a discriminator on true clips; no gradient flows there.
        fake: outputs on those the autoencoder made of them.
    """
    pairs = zip(real[:-1], fake[:-1], strict=True)
    return torch.stack([F.l1_loss(ours, theirs.detach()) for theirs, ours in pairs]).sum()


def chosen_frames(video: Video, index: Int64[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """One frame of each clip.

    Args:
        video: clips.
        index: of the frame, clip by clip.
    """
    return video[torch.arange(len(video), device=video.device), index]


def _initialise(module: nn.Module) -> None:
    """Weights around 0 (convolutions) and 1 (norms) with a deviation of 0.02; biases of norms are 0."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, BatchNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _like(values: Tensor, x: Tensor) -> Tensor:
    """One number per channel, shaped to meet (B, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))
