# SPDX-License-Identifier: Apache-2.0
"""What the priors are told: codes that are known already, read into features at the places of those to be drawn.

Paper tables 5 (top) and 6 (bottom). Codes go in through tables of numbers of their own, never as numbers themselves.
Hidden here: how little of table 6 one slice needs. Every further step that its kernels cover lies outside their reach
or beyond the clip's ends, where there are zeros, so that leaving it out changes nothing.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from framecast.systems.video_vqvae.config import BottomPriorConfig, TopPriorConfig
from framecast.systems.video_vqvae.tokenizer import ResidualStack

LONGEST_WINDOW = 16  # four halvings leave one step


class TopCondition(nn.Module):
    """Codes of the given frames to features at every top code that is to be drawn.

    Args:
        config: sizes.
        codes: entries of each codebook.
        steps: top steps to be drawn.

    Source: table 5; kernels of the up- and downsampling are ours, the table has only what comes out.

    Example:
        >>> read = TopCondition(TopPriorConfig(condition_hidden=8), codes=16, steps=3)
        >>> top, bottom = torch.zeros(2, 1, 4, 5, dtype=torch.long), torch.zeros(2, 2, 8, 10, dtype=torch.long)
        >>> tuple(read(top, bottom).shape)
        (2, 8, 3, 4, 5)
    """

    def __init__(self, config: TopPriorConfig, *, codes: int, steps: int):
        super().__init__()
        width, hidden = config.embedding, config.condition_hidden
        self.steps = steps
        self.top, self.bottom = nn.Embedding(codes, width), nn.Embedding(codes, width)
        self.enlarge = nn.ConvTranspose3d(width, width, 4, stride=2, padding=1)
        self.shrink = nn.Conv3d(2 * width, hidden // 2, 4, stride=2, padding=1)
        self.spread = nn.Conv3d(hidden // 2, hidden, 3, padding=1)
        # beside the borders of the convolution above, what tells the steps apart
        self.step_bias = nn.Parameter(torch.zeros(hidden, steps, 1, 1))
        self.stack = ResidualStack(
            hidden, config.condition_residual, config.condition_layers, convolution=partial(nn.Conv3d, padding="same")
        )
        _start(self.enlarge, gain=1.0)
        _start(self.shrink, gain=1.0)

    @property
    def checkpointing(self) -> bool:
        """Whether blocks are computed a second time in the backward pass in place of being kept."""
        return self.stack.checkpointing

    @checkpointing.setter
    def checkpointing(self, again: bool) -> None:
        self.stack.checkpointing = again

    def forward(self, top: Int64[Tensor, "b 1 h w"], bottom: Int64[Tensor, "b 2 y x"]) -> Float[Tensor, "b c s h w"]:
        """The features.

        Args:
            top: codes of the given frames, encoded alone.
            bottom: the same, twice as many steps, rows and columns.
        """
        seen = torch.cat([self.enlarge(_embedded(self.top, top)), _embedded(self.bottom, bottom)], dim=1)
        tiled = self.shrink(seen).expand(-1, -1, self.steps, -1, -1)
        return self.stack(self.spread(tiled) + self.step_bias)

    def start_from(self, top: Float[Tensor, "k d"], bottom: Float[Tensor, "k d"]) -> None:
        """Let every code begin as its vector of the tokenizer's; see `_adopt` for scale and widths."""
        _adopt(self.top, top)
        _adopt(self.bottom, bottom)


class BottomCondition(nn.Module):
    """Top codes and the past slices of bottom codes, to features at every code of the next slice.

    A slice is one step of bottom codes, n its number in the clip. Only top steps within reach of the kernels matter to
    it: with n = 2k those from k - 2 to k + 1, with n = 2k + 1 those from k - 1 to k + 2, as far as they exist.

    Args:
        config: sizes.
        codes: entries of each codebook; where there is no past slice, `past` holds this number.
        top: whether there is a top level.
        slices: bottom steps of a clip.

    Raises:
        ValueError: a window that four halvings do not bring down to one step.

    Source: table 6; the residual blocks' inner width is ours.

    Example:
        >>> config = BottomPriorConfig(condition_hidden=8, condition_residual=4, condition_layers=1)
        >>> read = BottomCondition(config, codes=16, top=True, slices=8)
        >>> top, n = torch.zeros(2, 4, 3, 5, dtype=torch.long), torch.tensor([2, 7])
        >>> past = torch.full((2, 4, 6, 10), 16)
        >>> tuple(read(top, past, n).shape)
        (2, 8, 6, 10)
    """

    def __init__(self, config: BottomPriorConfig, *, codes: int, top: bool, slices: int):
        super().__init__()
        if not 1 <= config.window <= LONGEST_WINDOW:
            raise ValueError(
                f"bottom_prior.window is {config.window}; four convolutions of stride 2 make one slice of 1 to "
                f"{LONGEST_WINDOW} past ones."
            )
        width, hidden = config.embedding, config.condition_hidden
        self.absent = codes
        self.past = nn.Embedding(codes + 1, width)
        self.halve = nn.ModuleList(nn.Conv3d(i, hidden, (4, 3, 3), stride=(2, 1, 1)) for i in [width] + 3 * [hidden])
        self.top = nn.Embedding(codes, width) if top else None
        if top:
            self.lengthen = nn.ConvTranspose3d(width, hidden, (4, 3, 3), stride=(2, 1, 1), padding=1)
            self.enlarge = nn.ConvTranspose3d(hidden, hidden, (3, 4, 4), stride=(1, 2, 2), padding=1)
            self.smooth = nn.Conv3d(hidden, hidden, 3, padding=1)
        self.join = nn.Conv2d(hidden * (1 + top), hidden, 1)
        self.stack = ResidualStack(
            hidden, config.condition_residual, config.condition_layers, convolution=partial(nn.Conv2d, padding="same")
        )
        self.slice_bias = nn.Embedding(slices, hidden) if config.slice_embedding else None
        self._start(config.window)

    def _start(self, window: int) -> None:
        """Weights that keep the scale of what passes, each by as many taps as meet something but padding."""
        steps = window
        for place, conv in enumerate(self.halve):
            _start(conv, gain=2.0 if place else 1.0, share=min(4, steps) / 4)
            steps = math.ceil(steps / 2)
        if self.top is not None:
            _start(self.lengthen, gain=1.0)
            _start(self.enlarge, gain=2.0)
            _start(self.smooth, gain=2.0)
        if self.slice_bias is not None:
            nn.init.zeros_(self.slice_bias.weight)

    @property
    def checkpointing(self) -> bool:
        """Whether blocks are computed a second time in the backward pass in place of being kept."""
        return self.stack.checkpointing

    @checkpointing.setter
    def checkpointing(self, again: bool) -> None:
        self.stack.checkpointing = again

    def forward(
        self, top: Int64[Tensor, "b t h w"] | None, past: Int64[Tensor, "b k y x"], n: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b c y x"]:
        """The features of one slice per row.

        Args:
            top: all top codes of the clip; None in a model without them.
            past: slices n - window to n - 1, the earliest first; `absent` throughout those before the clip.
            n: the slice's number, per row.
        """
        return self._joined(None if top is None else self.top_slice(top, n), past, n)

    def top_features(self, top: Int64[Tensor, "b t h w"]) -> Float[Tensor, "b c s y x"]:
        """What all slices s = 2 t are told by the top codes: once for a clip, where all of it is drawn or learnt."""
        return self.smooth(F.relu(self.enlarge(self._longer(top))))

    def top_slice(self, top: Int64[Tensor, "b t h w"], n: Int64[Tensor, " b"]) -> Float[Tensor, "b c y x"]:
        """`top_features(top)[:, :, n]`, row by row, without computing the others."""
        near = _around(self._longer(top), n, reach=2)
        enlarge = self.enlarge
        # no border in time: the three steps about n each see their three
        near = F.relu(F.conv_transpose3d(near, enlarge.weight, enlarge.bias, stride=enlarge.stride, padding=(2, 1, 1)))
        inside = _inside(n, reach=1, steps=2 * top.shape[1])
        return _one_step(near * inside[:, None, :, None, None], self.smooth.weight, self.smooth.bias)

    def joined(
        self, top: Float[Tensor, "b c s y x"] | None, past: Int64[Tensor, "b k y x"], n: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b c y x"]:
        """The features of one slice per row, where those of all top codes are there already.

        Args:
            top: `top_features`; None in a model without top codes.
            past: as in `forward`.
            n: as in `forward`.
        """
        rows = torch.arange(len(past), device=past.device)
        return self._joined(None if top is None else top[rows, :, n], past, n)

    def _joined(self, seen: Tensor | None, past: Tensor, n: Tensor) -> Tensor:
        before = _embedded(self.past, past)
        for place, conv in enumerate(self.halve):
            before = _halved(F.relu(before) if place else before, conv)
        before = before.squeeze(2)
        features: Tensor = self.stack(self.join(before if seen is None else torch.cat([seen, before], dim=1)))
        return features if self.slice_bias is None else features + self.slice_bias(n)[:, :, None, None]

    def start_from(self, top: Float[Tensor, "k d"] | None, bottom: Float[Tensor, "k d"]) -> None:
        """Let every code begin as its vector of the tokenizer's; see `_adopt` for scale and widths."""
        if self.top is not None and top is not None:
            _adopt(self.top, top)
        _adopt(self.past, bottom)

    def _longer(self, top: Tensor) -> Tensor:
        assert self.top is not None
        return F.relu(self.lengthen(_embedded(self.top, top)))


def _embedded(table: nn.Embedding, codes: Tensor) -> Tensor:
    return table(codes).movedim(-1, 1)


@torch.no_grad()
def _adopt(table: nn.Embedding, codebook: Tensor) -> None:
    """The codebook's vectors at unit mean square; a table of another width stays random, a further entry too."""
    if codebook.shape[1] == table.embedding_dim:
        scale = codebook.pow(2).mean().sqrt().clamp(min=torch.finfo(codebook.dtype).tiny)
        table.weight[: len(codebook)] = (codebook / scale).to(table.weight)


def _start(conv: nn.Module, *, gain: float, share: float = 1.0) -> None:
    """Weights that keep a mean square, or with a gain of 2 that of what a ReLU has halved.

    Args:
        conv: a convolution, transposed or not.
        gain: variance of a weight times the number of values that meet it.
        share: of the kernel's steps that meet anything but padding.
    """
    assert isinstance(conv, nn.Conv3d | nn.ConvTranspose3d)
    met = conv.in_channels * math.prod(conv.kernel_size) * share
    if isinstance(conv, nn.ConvTranspose3d):
        met /= math.prod(conv.stride)
    nn.init.normal_(conv.weight, std=math.sqrt(gain / met))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _halved(x: Tensor, conv: nn.Module) -> Tensor:
    """Half the steps, rounded up: one step of padding in front and one behind, or two behind an odd number."""
    assert isinstance(conv, nn.Conv3d)
    steps = x.shape[2]
    if steps > 2:
        return F.conv3d(F.pad(x, (1, 1, 1, 1, 1, 1 + steps % 2)), conv.weight, conv.bias, stride=conv.stride)
    # all other taps meet padding
    return _one_step(x, conv.weight[:, :, 1 : 1 + steps], conv.bias).unsqueeze(2)


def _one_step(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of (B, C, T, H, W) with a kernel of T steps, in two axes: its channels are (c t)."""
    return F.conv2d(x.flatten(1, 2), weight.flatten(1, 2), bias, padding=1)


def _around(x: Tensor, n: Tensor, *, reach: int) -> Tensor:
    """Steps n - reach to n + reach of each row of (B, C, T, H, W), zeros for those that do not exist."""
    steps, rows = x.shape[2], torch.arange(len(x), device=x.device)
    place = n[:, None] + torch.arange(-reach, reach + 1, device=n.device)
    taken = x.movedim(2, 1)[rows[:, None], place.clamp(0, steps - 1)].movedim(1, 2)
    return taken * _inside(n, reach=reach, steps=steps)[:, None, :, None, None]


def _inside(n: Tensor, *, reach: int, steps: int) -> Tensor:
    """Per row, which of the steps n - reach to n + reach exist."""
    place = n[:, None] + torch.arange(-reach, reach + 1, device=n.device)
    return (place >= 0) & (place < steps)
