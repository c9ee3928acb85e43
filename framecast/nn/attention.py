# SPDX-License-Identifier: Apache-2.0
"""Self-attention over all positions of a feature map, as a residual block.

Parameter names and channel order follow the code of Nichol and Dhariwal (2021), so that published weights load: the
3 C outputs of `qkv` are ordered heads x (q, k, v) x C / heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from framecast.nn.blocks import widened, zeroed


class SelfAttention(nn.Module):
    """x + proj(attention(norm(x))): every position sees every other; no positions are encoded, nothing is causal.

    Args:
        channels: of input and output.
        heads: their number; divides `channels`.
        groups: of GroupNorm.
    """

    def __init__(self, channels: int, *, heads: int, groups: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} attention heads: they must divide.")
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, for x of shape (B, C, ...); all further axes become one axis of positions."""
        # DEVIATES: one fused attention instead of explicit weights (256 MiB per sample and layer at 4096 positions)
        tokens = self.norm(widened(x)).to(x.dtype).flatten(2).transpose(1, 2)
        qkv = F.linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias)
        q, k, v = rearrange(qkv, "b n (heads three d) -> three b heads n d", heads=self.heads, three=3).contiguous()
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")
        h = F.linear(h, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + h.transpose(1, 2).reshape(x.shape)
