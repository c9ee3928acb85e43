# SPDX-License-Identifier: Apache-2.0
"""The hierarchical VQ-VAE in space and time: clips to two levels of codes and back. Section 3.1, table 3, figure 2.

Strided kernels are twice their stride, so that sizes are exact; the paper leaves layers between them to VQ-VAE-2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framecast.system import Code
from framecast.systems.video_vqvae.config import TokenizerConfig, TokenizerStageConfig
from framecast.systems.video_vqvae.quantiser import Latent, Quantised, Quantiser
from framecast.video import Video

Features: TypeAlias = Float[Tensor, "b c t y x"]
Padding: TypeAlias = Literal["same", "causal"]
Level: TypeAlias = Literal["top", "bottom"]

SECOND = (4, 4, 4)  # kernel between the levels, stride 2: priors rely on it


class Convolution(nn.Conv3d):
    """A convolution whose output is its input's size over the stride.

    Args:
        inner: channels in.
        outer: channels out.
        kernel: sides (t, y, x), or one side.
        strided: by half of the kernel; else the stride is 1.
        padding: of time; `causal`: all of it in the past.
    """

    def __init__(
        self, inner: int, outer: int, kernel: int | tuple[int, int, int], *, padding: Padding, strided: bool = False
    ):
        sides = (kernel,) * 3 if isinstance(kernel, int) else kernel
        stride = halves(sides) if strided else (1, 1, 1)
        t, y, x = ((k - s) // 2 for k, s in zip(sides, stride, strict=True))
        self.before = sides[0] - stride[0] if padding == "causal" else 0
        super().__init__(inner, outer, sides, stride, padding=(0 if self.before else t, y, x))

    def forward(self, x: Features) -> Features:
        return super().forward(F.pad(x, (0, 0, 0, 0, self.before, 0)) if self.before else x)


class Transposed(nn.ConvTranspose3d):
    """A transposed convolution whose output is its input's size times the stride, half of the kernel.

    Args:
        inner: channels in.
        outer: channels out.
        kernel: sides (t, y, x).
        padding: of time; `causal`: what is too much is cut off at the end.
    """

    def __init__(self, inner: int, outer: int, kernel: tuple[int, int, int], *, padding: Padding):
        stride = halves(kernel)
        t, y, x = (s // 2 for s in stride)
        self.after = stride[0] if padding == "causal" else 0
        super().__init__(inner, outer, kernel, stride, padding=(0 if self.after else t, y, x))

    def forward(self, x: Features, output_size: list[int] | None = None) -> Features:
        made = super().forward(x)
        return made[:, :, : -self.after] if self.after else made


class Residual(nn.Module):
    """x + convolution 1 (relu (convolution 3 (relu x)))."""

    def __init__(self, width: int, inner: int, convolution: Callable[[int, int, int], nn.Module]):
        super().__init__()
        self.wide = convolution(width, inner, 3)
        self.back = convolution(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.back(F.relu(self.wide(F.relu(x))))
        return made


class ResidualStack(nn.Module):
    """Residual blocks, and ReLU after the last.

    Args:
        width: channels in and out.
        inner: channels between the convolutions of a block.
        layers: blocks.
        convolution: makes one that keeps the size, of channels in, channels out and side; of 2 axes or 3.
    """

    checkpointing: bool = False  # recompute blocks in the backward pass; set by the training stage

    def __init__(self, width: int, inner: int, layers: int, *, convolution: Callable[[int, int, int], nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(Residual(width, inner, convolution) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        again = self.checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return F.relu(x)


class Encoder(nn.Module):
    """Strided convolution, ReLU, convolution 3, residual stack."""

    def __init__(self, inner: int, kernel: tuple[int, int, int], config: TokenizerConfig):
        super().__init__()
        padding = config.temporal_padding
        convolution = partial(Convolution, padding=padding)
        self.down = Convolution(inner, config.hidden, kernel, padding=padding, strided=True)
        self.mix = convolution(config.hidden, config.hidden, 3)
        self.stack = ResidualStack(config.hidden, config.residual, config.layers, convolution=convolution)

    def forward(self, x: Features) -> Features:
        made: Features = self.stack(self.mix(F.relu(self.down(x))))
        return made


class Decoder(nn.Module):
    """Convolution 3, residual stack, transposed convolution."""

    def __init__(self, inner: int, outer: int, kernel: tuple[int, int, int], config: TokenizerConfig):
        super().__init__()
        padding = config.temporal_padding
        convolution = partial(Convolution, padding=padding)
        self.mix = convolution(inner, config.hidden, 3)
        self.stack = ResidualStack(config.hidden, config.residual, config.layers, convolution=convolution)
        self.up = Transposed(config.hidden, outer, kernel, padding=padding)

    def forward(self, x: Features) -> Features:
        made: Features = self.up(self.stack(self.mix(x)))
        return made


class Tokenizer(nn.Module):
    """Clips to codes, top and bottom, and back.

    Args:
        config: sizes.
        channels: of a frame.
        size: height and width of a frame.
        frames: of a clip.

    Raises:
        ValueError: sizes that the strides do not divide, or kernels that have no half.

    Example:
        >>> config = TokenizerConfig(hidden=8, residual=4, codes=16, code_width=8)
        >>> tokenizer = Tokenizer(config, channels=3, size=(16, 24), frames=16).eval()
        >>> codes = tokenizer.encode(torch.zeros(1, 16, 3, 16, 24))
        >>> [tuple(codes[level].shape) for level in ("top", "bottom")]
        [(1, 4, 2, 3), (1, 8, 4, 6)]
        >>> tokenizer.decode(codes).shape
        torch.Size([1, 16, 3, 16, 24])

    Source: section 3.1 and table 3; layers between strided ones as in VQ-VAE-2 (Razavi et al. 2019).
    """

    def __init__(self, config: TokenizerConfig, *, channels: int, size: tuple[int, int], frames: int):
        super().__init__()
        self.config, self.channels, self.size, self.frames = config, channels, size, frames
        self.checkpointing = False  # compute features anew in the backward pass
        first, padding, hidden, width = config.first_kernel, config.temporal_padding, config.hidden, config.code_width
        self.stride = check_sizes(config, size=size, frames=frames)
        two = config.levels == 2
        self.bottom_encoder = Encoder(channels, first, config)
        told = width if two and config.bottom_conditioned_on_top else 0
        self.bottom_in = Convolution(hidden + told, width, 1, padding=padding)
        self.bottom = Quantiser(codes=config.codes, width=width)
        if two:
            self.top_encoder = Encoder(hidden, SECOND, config)
            self.top_in = Convolution(hidden, width, 1, padding=padding)
            self.top = Quantiser(codes=config.codes, width=width)
            self.top_decoder = Decoder(width, width, SECOND, config) if told else None
            self.top_up = Transposed(width, width, SECOND, padding=padding)
        self.decoder = Decoder(width * config.levels, channels, first, config)
        self.variance: Tensor
        self.register_buffer("variance", torch.ones(()))  # of training pixels, by which their error is divided

    @property
    def levels(self) -> tuple[Level, ...]:
        """Top first, which is drawn first."""
        return ("top", "bottom") if self.config.levels == 2 else ("bottom",)

    def grid(self, level: Level, frames: int | None = None) -> tuple[int, int, int]:
        """Steps, rows and columns of a level's codes of so many frames; None: of a clip."""
        lower = (self.frames if frames is None else frames, *self.size)
        factor = 2 if level == "top" else 1
        t, y, x = (length // (stride * factor) for length, stride in zip(lower, self.stride, strict=True))
        return t, y, x

    @property
    def given(self) -> int:
        """Frames of one step of the coarsest level: the fewest that have codes."""
        return self.stride[0] * self.config.levels

    def quantised(self, video: Video) -> dict[Level, Quantised]:
        """All levels of clips of any length that `given` divides."""
        found: dict[Level, Quantised] = {}
        lower = self._features(self.bottom_encoder, video.transpose(1, 2) / 2)  # of pixels in -0.5 to 0.5
        if self.config.levels == 2:
            found["top"] = self.top(self.top_in(self._features(self.top_encoder, lower)))
            if self.top_decoder is not None:
                lower = torch.cat([self._features(self.top_decoder, found["top"].values), lower], dim=1)
        return {**found, "bottom": self.bottom(self.bottom_in(lower))}

    @torch.no_grad()
    def start(self, video: Video, generator: torch.Generator, settings: TokenizerStageConfig) -> None:
        """The first codebooks, and the variance of pixels, from a first batch."""
        variance = settings.variance
        self.variance.fill_(float((video / 2).var()) or 1.0 if variance is None else variance)
        for level in self.levels:  # the bottom's vectors depend on the top's codes
            rows = self.quantised(video)[level].vectors.movedim(1, -1).flatten(0, -2)
            self.quantiser(level).start(rows, settings.codebook_start, generator, average=settings.codebook_average)

    @torch.no_grad()
    def encode(self, video: Video) -> Code:
        """Codes of clips, by level, int64 (B, steps, rows, columns).

        Args:
            video: any number of frames that `given` divides.

        Raises:
            ValueError: another number, or frames of another shape.
        """
        shape = tuple(video.shape[2:])
        if video.shape[1] % self.given or shape != (self.channels, *self.size):
            wanted = " × ".join(map(str, (self.channels, *self.size)))
            raise ValueError(
                f"the tokenizer takes a multiple of {self.given} frames of {wanted} (channels, height, width), not "
                f"{video.shape[1]} of {' × '.join(map(str, shape))}."
            )
        return {level: found.codes for level, found in self.quantised(video).items()}

    @torch.no_grad()
    def encode_after(self, video: Video, given: int) -> Code:
        """Codes of clips as priors see them: those of the `given` first frames are of these frames alone.

        The others are the whole clip's, as the decoder knows them. With causal padding that makes no difference.
        """
        whole = self.encode(video)
        if self.config.temporal_padding == "causal":
            return whole
        alone = self.encode(video[:, :given])
        return {level: torch.cat([alone[level], whole[level][:, alone[level].shape[1] :]], 1) for level in whole}

    @torch.no_grad()
    def decode(self, code: Code) -> Video:
        """The clips of codes, in -1 to 1; a level that is missing counts as zeros, as it does when it is masked."""
        latents = {level: self.quantiser(level).lookup(codes) for level, codes in code.items()}  # type: ignore[arg-type]
        return self.decoded(latents).clamp(-1, 1).float()

    def decoded(self, latents: Mapping[str, Latent]) -> Video:
        """Clips from the vectors of codes, not clamped; at least of one level."""
        parts = []
        if self.config.levels == 2:
            if (top := latents.get("top")) is None:
                b, _, t, y, x = latents["bottom"].shape
                top = latents["bottom"].new_zeros(b, self.config.code_width, t // 2, y // 2, x // 2)
            parts.append(self.top_up(top))
        bottom = latents.get("bottom")
        parts.append(torch.zeros_like(parts[0]) if bottom is None else bottom)
        made: Video = 2 * self._features(self.decoder, torch.cat(parts, dim=1)).transpose(1, 2)
        return made

    def quantiser(self, level: Level) -> Quantiser:
        """The codebook of a level."""
        found: Quantiser = self.top if level == "top" else self.bottom
        return found

    def _features(self, network: Callable[[Features], Features], x: Features) -> Features:
        # never a quantiser, which would count every vector twice
        if self.checkpointing and self.training and torch.is_grad_enabled():
            made: Features = checkpoint(network, x, use_reentrant=False)
            return made
        return network(x)


def halves(sides: tuple[int, int, int]) -> tuple[int, int, int]:
    """Half of each."""
    t, y, x = sides
    return t // 2, y // 2, x // 2


def check_sizes(config: TokenizerConfig, *, size: tuple[int, int], frames: int) -> tuple[int, int, int]:
    """Strides (t, y, x) of the first convolution.

    Raises:
        ValueError: networks without channels or codes, kernels without a half, or sizes that strides do not divide.
    """
    for key in ("hidden", "residual", "codes", "code_width"):
        if (value := getattr(config, key)) < 1:
            raise ValueError(f"model.tokenizer.{key} is {value}; it must be at least 1.")
    if any(side < 4 or side % 4 for side in config.first_kernel):
        raise ValueError(
            f"model.tokenizer.first_kernel is {config.first_kernel}; its sides must be multiples of 4, for the "
            "strides are half of them."
        )
    t, y, x = halves(config.first_kernel)
    for name, length, stride in (("clip_frames", frames, t), ("height", size[0], y), ("width", size[1], x)):
        if length % (stride * config.levels):
            raise ValueError(
                f"{name} is {length}; with model.tokenizer.first_kernel {config.first_kernel} and "
                f"{config.levels} {'levels' if config.levels == 2 else 'level'} it must be a multiple of "
                f"{stride * config.levels}."
            )
    return t, y, x
