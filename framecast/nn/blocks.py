# SPDX-License-Identifier: Apache-2.0
"""Standard layers of diffusion U-Nets: step embedding, normalisation with SiLU in one step, the residual block.

The residual block is the one of Nichol and Dhariwal, "Improved denoising diffusion probabilistic models" (2021);
parameter names follow their code, so that published weights load. Hidden here: the fused form of normalise, scale,
shift and activate, which keeps one tensor for the backward pass instead of four; 1x1 convolutions as matrix products.
Fastest where channels are the last axis in memory.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

M = TypeVar("M", bound=nn.Module)
CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


def step_embedding(t: Float[Tensor, " b"], width: int, *, max_period: float = 10_000.0) -> Float[Tensor, "b width"]:
    """Sinusoids of a diffusion time: cos(t f_i), then sin(t f_i), with f_i = max_period^(-i / half).

    Args:
        t: times, one per row; fractions are allowed.
        width: length of the embedding, half = width // 2; an odd width ends in a zero.
        max_period: controls the lowest frequency.

    Example:
        >>> step_embedding(torch.zeros(1), 5).tolist()
        [[1.0, 1.0, 0.0, 0.0, 0.0]]
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def zeroed(module: M) -> M:
    """The same module with all parameters set to 0, so that its branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def widened(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


class _NormSilu(torch.autograd.Function):
    """silu(xhat * scale + shift) with xhat = group-normalised x; saves only x and the groups' statistics.

    With a = rstd * scale, z = a x + (shift - a mean) is rebuilt in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
        rows, channels = x.shape[:2]
        values = widened(x)  # statistics in float32 also where x is coarser
        if x.device.type != "cpu":  # there the kernel knows one layout only, and older versions refuse others
            values = values.contiguous()
        size = values[0, 0].numel()
        xhat, mean, rstd = torch.native_group_norm(values, None, None, rows, channels, size, groups, eps)
        ctx.save_for_backward(x, scale, shift, mean, rstd)
        return F.silu(torch.addcmul(_like(shift, x), xhat, _like(scale, x)), inplace=True).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scale, shift, mean, rstd = ctx.saved_tensors
        rows, channels = scale.shape
        groups = mean.shape[1]
        share = channels // groups
        values = widened(x)
        mean_c, rstd_c = mean.repeat_interleave(share, 1), rstd.repeat_interleave(share, 1)
        a = rstd_c * scale
        z = torch.addcmul(_like(shift - a * mean_c, x), values, _like(a, x))
        dz = torch.ops.aten.silu_backward(grad.to(z.dtype), z)
        sum_dz = _sum_positions(dz)
        sum_dz_xhat = rstd_c * (_sum_positions(dz * values) - mean_c * sum_dz)
        # means over a group of d loss / d xhat, and of the same times xhat
        count = share * values[0, 0].numel()
        m_1 = (scale * sum_dz).view(rows, groups, share).sum(2) / count
        m_2 = (scale * sum_dz_xhat).view(rows, groups, share).sum(2) / count
        slope = -(rstd**2) * m_2
        offset = -rstd * m_1 - slope * mean
        dx = dz.mul_(_like(a, x))
        dx.addcmul_(values, _like(slope.repeat_interleave(share, 1), x))
        dx.add_(_like(offset.repeat_interleave(share, 1), x))
        return dx.to(x.dtype), sum_dz_xhat, sum_dz, None, None


def _like(values: Tensor, x: Tensor) -> Tensor:
    """(B, C) numbers, shaped to multiply the channels of x."""
    return values.reshape(*values.shape, *[1] * (x.ndim - 2))


def _sum_positions(x: Tensor) -> Tensor:
    """(B, C) sums over all further axes; a matrix product where channels are last in memory."""
    tokens = x.flatten(2).transpose(1, 2)
    return torch.bmm(tokens.new_ones(1, 1, 1).expand(len(x), 1, tokens.shape[1]), tokens).squeeze(1)


def norm_silu(x: Tensor, norm: nn.Module, *, modulation: Tensor | None = None) -> Tensor:
    """silu(norm(x)), or silu(norm(x) * (1 + scale) + shift).

    Args:
        x: (B, C, ...).
        norm: a GroupNorm; its statistics run over a group's channels and all further axes jointly.
        modulation: (B, 2 C), scale in front of shift.

    Returns:
        Same shape and dtype as x; normalised in float32, or in float64 where x is.
    """
    assert isinstance(norm, nn.GroupNorm)
    gain, bias = widened(norm.weight).expand(len(x), -1), widened(norm.bias).expand(len(x), -1)
    if modulation is not None:
        scale, shift = widened(modulation).chunk(2, dim=1)
        gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
    return _NormSilu.apply(x, gain, bias, norm.num_groups, norm.eps)


def pointwise(x: Tensor, conv: nn.Module) -> Tensor:
    """A convolution whose kernel has one element, as a matrix product over channels."""
    weight, bias = conv.weight, conv.bias
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)  # type: ignore[operator, arg-type]


class ResBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the step embedding between them; added to the input.

    Args:
        channels: of the input.
        out_channels: of the output; where they differ the input passes a 1x1 convolution.
        embedding: width of the step embedding.
        groups: of GroupNorm.
        scale_shift: the embedding scales and shifts the second norm's output; False: it is added before that norm.
        dropout: rate in front of the second convolution.
        dims: axes of the convolutions, 2 or 3.
        resample: changes the size of both the input and what goes into the first convolution; None: the size stays.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        embedding: int,
        groups: int,
        scale_shift: bool = True,
        dropout: float = 0.0,
        dims: int = 3,
        resample: nn.Module | None = None,
    ):
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), conv(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, (1 + scale_shift) * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(conv(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else conv(channels, out_channels, 1)

    def forward(self, x: Tensor, active: Float[Tensor, "b e"]) -> Tensor:
        """The block's output.

        Args:
            x: (B, C, ...).
            active: SiLU of the step embedding, which all blocks share.
        """
        in_norm, _, in_conv = self.in_layers
        out_norm, _, dropout, out_conv = self.out_layers
        modulation = self.emb_layers[1](active)
        h = norm_silu(x, in_norm)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = in_conv(h)
        if self.scale_shift:
            h = norm_silu(h, out_norm, modulation=modulation)
        else:
            h = norm_silu(h + _like(modulation, h).to(h.dtype), out_norm)
        h = out_conv(dropout(h))
        skip = x if isinstance(self.skip_connection, nn.Identity) else pointwise(x, self.skip_connection)
        return skip + h
