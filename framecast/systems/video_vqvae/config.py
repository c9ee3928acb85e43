# SPDX-License-Identifier: Apache-2.0
"""Video VQ-VAE's settings (no torch). Sources: the paper's tables 3 to 6; where it is silent, see README.md here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from framecast.experiment import EmaConfig, Experiment, SampleOptions, StageConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The hierarchical VQ-VAE, table 3. Kernels are (t, y, x), the table writes (t, w, h)."""

    hidden: int = 128  # channels everywhere but below
    residual: int = 32  # inner channels of residual blocks
    layers: int = 2  # residual blocks of a stack
    codes: int = 512  # entries of each codebook
    code_width: int = 64  # numbers of an entry
    first_kernel: tuple[int, int, int] = (4, 8, 8)  # of the first strided convolution and the last transposed one,
    # multiples of 4; strides are half of it. The second is always (4, 4, 4)
    levels: Literal[1, 2] = 2  # 1: bottom codes alone, no top
    bottom_conditioned_on_top: bool = True  # before bottom codes are chosen; as in VQ-VAE-2, the paper does not say
    temporal_padding: Literal["same", "causal"] = "same"  # same: every code sees all frames, as published; causal: none
    # sees a frame after its own, so that given frames have the same codes alone as within a clip


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """A gated PixelCNN with attention; the defaults are table 4's for the top."""

    hidden: int = 512  # channels of both stacks, a multiple of heads
    residual: int = 1024  # feature maps of a layer before its gate, an even number
    layers: int = 40
    attention_every: int = 5  # layers between two attention layers; 0: there are none
    heads: int = 8
    kernel: int = 3  # side of the convolutions, odd
    dropout: float = 0.5  # of what a layer adds to the horizontal stack
    attention_dropout: float = 0.1  # of attention weights
    vertical_residual: bool = True  # layers add to the vertical stack, where the original ones replace it


@dataclass(frozen=True, kw_only=True)
class TopPriorConfig(PriorConfig):
    """The prior of top codes, and its stack that reads the codes of the given frames (table 5)."""

    vertical: Literal["plane", "full"] = "plane"  # kernels of the vertical stack: in y and t, as published, or in x too
    embedding: int = 64  # numbers that stand for a given code
    condition_hidden: int = 512
    condition_residual: int = 128  # inner channels of residual blocks
    condition_layers: int = 4  # residual blocks


@dataclass(frozen=True, kw_only=True)
class BottomPriorConfig(PriorConfig):
    """The prior of one time slice of bottom codes, and its stack that reads top codes and past slices (table 6)."""

    layers: int = 20
    kernel: int = 5
    dropout: float = 0.0
    embedding: int = 64  # numbers that stand for a code that is read
    window: int = 4  # past slices that are read; table 6 has 4, the text 2
    condition_hidden: int = 1024
    condition_residual: int = 1024  # inner channels of residual blocks
    condition_layers: int = 20  # residual blocks
    slice_embedding: bool = True  # the number of the slice is told


@dataclass(frozen=True, kw_only=True)
class VideoVQVAEConfig:
    """The three networks."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    top_prior: TopPriorConfig = field(default_factory=TopPriorConfig)
    bottom_prior: BottomPriorConfig = field(default_factory=BottomPriorConfig)


NO_AVERAGE = EmaConfig(decay=0.0)


@dataclass(frozen=True, kw_only=True)
class TokenizerStageConfig(StageConfig):
    """Video VQ-VAE's first stage: clips to codes and back."""

    commitment: float = 0.25  # beta, weight of each level's distance from its codes
    reduction: Literal["mean", "sum"] = "mean"  # of squared errors; sum is equation 2 as printed
    variance: float | None = None  # of the data, by which the pixels' error is divided; null: of the first batch
    bottom_mask: float = 0.25  # share of what the decoder is not shown of the bottom level
    mask_unit: Literal["clip", "step", "place"] = "clip"  # what is masked or not as one
    codebook_decay: float = 0.99  # gamma of equation 3
    codebook_eps: float = 1e-5  # added to every code's count
    codebook_average: Literal["ones", "debiased"] = "ones"  # how the averages of equation 3 begin: at one hit of each
    # code, or at nothing with the bias divided out, as DeepMind's quantisers do, which forgets the codebook at once
    codebook_start: Literal["data", "normal", "uniform"] = "data"  # rows of the first batch, or random numbers
    restart: float = (
        0.0  # codes chosen less than this share of the mean are put on a vector of the batch; 0: never. These
    )
    # vectors are the first process's last micro-batch's
    ema: EmaConfig = NO_AVERAGE


@dataclass(frozen=True, kw_only=True)
class PriorStageConfig(StageConfig):
    """Video VQ-VAE's further stages: one level's codes, given what is drawn before them."""

    cache: bool = False  # encode every training clip once and keep its codes in memory


@dataclass(frozen=True, kw_only=True)
class BottomPriorStageConfig(PriorStageConfig):
    """The bottom's stage, which learns slice by slice."""

    slices: int = 1  # slices that are learnt of each clip; 0: all


@dataclass(frozen=True, kw_only=True)
class VideoVQVAEStages:
    """All stages of the system, in the order of training."""

    tokenizer: TokenizerStageConfig = field(default_factory=TokenizerStageConfig)
    top_prior: PriorStageConfig = field(default_factory=PriorStageConfig)
    bottom_prior: BottomPriorStageConfig = field(default_factory=BottomPriorStageConfig)


@dataclass(frozen=True, kw_only=True)
class VideoVQVAESampling(SampleOptions):
    """How codes are drawn."""

    temperature: float = 1.0  # of top codes; logits are divided by it
    bottom_temperature: float = 1.0
    top_k: int = 0  # only so many likeliest top codes are drawn from; 0: all
    bottom_top_k: int = 0
    top_p: float = 1.0  # only the likeliest top codes that hold this share of probability
    bottom_top_p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class VideoVQVAEExperiment(Experiment):
    """A whole Video VQ-VAE run."""

    system: Literal["video_vqvae"] = "video_vqvae"
    model: VideoVQVAEConfig = field(default_factory=VideoVQVAEConfig)
    stages: VideoVQVAEStages = field(default_factory=VideoVQVAEStages)
    sample: VideoVQVAESampling = field(default_factory=VideoVQVAESampling)
