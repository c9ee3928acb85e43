# SPDX-License-Identifier: Apache-2.0
"""How like the truth a picture is: PSNR of frames and of whole clips, SSIM in the three forms that papers use.

One value per frame comes back, so that curves over frames and every kind of mean can be made of it. Statistics are in
float64. SSIM is that of Wang et al. (2004); windows that reach over the border are left out.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn.functional import avg_pool2d

PSNR_CAP = 100.0  # decibels; identical frames would be infinite and spoil every mean

SSIMVariant = Literal["gauss11", "gauss11_luma", "uniform7"]
_GAUSS_SIDE, _GAUSS_SIGMA, _UNIFORM_SIDE = 11, 1.5, 7  # pixels
_K1, _K2 = 0.01, 0.03  # Wang et al. (2004), section III-B: keep quotients of small numbers steady
_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601
_AT_ONCE = 2**18  # values of a picture stack worked on together, which bounds memory and stays in the cache


def psnr(
    made: Num[Tensor, "*batch c h w"], truth: Num[Tensor, "*more c h w"], *, peak: float = 255.0
) -> Float[Tensor, "*both"]:
    """Peak signal-to-noise ratio of every frame in decibels, 10 log10(peak^2 / MSE), higher is better.

    Args:
        made: frames of a forecast, in any number of leading axes.
        truth: the true frames; leading axes broadcast against those of `made`.
        peak: width of the range of values.

    Returns:
        One value per frame, at most `PSNR_CAP`, which identical frames get.

    Raises:
        ValueError: frames of different shapes.

    Example:
        >>> round(psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 25.5)).item(), 3)
        20.0
    """
    return _decibels(_squared_error(made, truth), peak)


def psnr_clip(
    made: Num[Tensor, "*batch t c h w"], truth: Num[Tensor, "*more t c h w"], *, peak: float = 255.0
) -> Float[Tensor, "*both"]:
    """PSNR of every clip from its error over all frames, as PVDM reports it; never above the mean of `psnr`.

    Args:
        made: clips, in any number of leading axes.
        truth: the true clips; leading axes broadcast against those of `made`.
        peak: width of the range of values.

    Returns:
        One value per clip in decibels, at most `PSNR_CAP`.

    Raises:
        ValueError: clips of different lengths or shapes.

    Example:
        >>> made = torch.zeros(2, 1, 2, 2)
        >>> truth = torch.tensor([0.0, 51.0])[:, None, None, None].expand(2, 1, 2, 2)
        >>> round(psnr_clip(made, truth).item(), 2), round(psnr(made, truth).mean().item(), 2)
        (16.99, 56.99)
    """
    if made.shape[-4] != truth.shape[-4]:
        raise ValueError(
            f"a clip of {made.shape[-4]} frames cannot be compared with one of {truth.shape[-4]}: "
            "give the same frames of both."
        )
    return _decibels(_squared_error(made, truth).mean(-1), peak)


def _squared_error(made: Tensor, truth: Tensor) -> Tensor:
    _check_frames(made, truth)
    return (made.to(torch.float64) - truth.to(torch.float64)).square().mean((-3, -2, -1))


def _decibels(error: Tensor, peak: float) -> Tensor:
    return (10.0 * torch.log10(peak**2 / error)).clamp(max=PSNR_CAP)


def _check_frames(made: Tensor, truth: Tensor) -> None:
    if made.shape[-3:] != truth.shape[-3:]:
        told = [" x ".join(map(str, frames.shape[-3:])) for frames in (made, truth)]
        raise ValueError(
            f"a frame of {told[0]} (channels x height x width) cannot be compared with one of {told[1]}: "
            "bring both to one size."
        )


def ssim(
    made: Num[Tensor, "*batch c h w"],
    truth: Num[Tensor, "*more c h w"],
    *,
    peak: float = 255.0,
    variant: SSIMVariant = "gauss11",
) -> Float[Tensor, "*both"]:
    """Structural similarity of every frame, at most 1, which identical frames get.

    (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2)) of the means m and covariances s inside
    a window, averaged over all windows that lie in the frame and over channels.

    Args:
        made: frames of a forecast, in any number of leading axes.
        truth: the true frames; leading axes broadcast against those of `made`.
        peak: width of the range of values.
        variant: `gauss11`, a Gaussian window of 11 pixels with a spread of 1.5 and covariances over its weight (Wang et
            al.; FitVid); `gauss11_luma`, the same on 8-bit luminance (MCVD); `uniform7`, a flat window of 7 pixels and
            covariances over one less than their number (the default of scikit-image; SVG).

    Returns:
        One value per frame. Values of different variants must not be compared.

    Raises:
        ValueError: frames of different shapes or smaller than the window, an unknown variant, or luminance of anything
            but 8-bit frames of 1 or 3 channels.

    Source: Wang, Bovik, Sheikh and Simoncelli (2004), Image quality assessment, section III-B.

    Example:
        >>> frame = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
        >>> ssim(frame, frame).item()
        1.0
    """
    if variant not in get_args(SSIMVariant):
        raise ValueError(f"variant is {variant!r}; it can be {', '.join(get_args(SSIMVariant))}.")
    _check_frames(made, truth)
    side = _UNIFORM_SIDE if variant == "uniform7" else _GAUSS_SIDE
    if min(made.shape[-2:]) < side:
        raise ValueError(
            f"SSIM of variant {variant} looks at windows of {side} x {side} pixels; "
            f"frames of {made.shape[-2]} x {made.shape[-1]} are too small for it."
        )
    if variant == "gauss11_luma":
        made, truth = _luma(made), _luma(truth)
    made, truth = torch.broadcast_tensors(made, truth)
    # channels are pictures of their own from here on
    stacks = [x.reshape(-1, 1, *x.shape[-2:]) for x in (made, truth)]
    at_once = max(1, _AT_ONCE // stacks[0][0].numel())
    values = [_ssim(x, y, peak, variant) for x, y in zip(*(s.split(at_once) for s in stacks))]
    return torch.cat(values).reshape(made.shape[:-2]).mean(-1)


def _ssim(x: Tensor, y: Tensor, peak: float, variant: str) -> Tensor:
    """SSIM of pictures (n, 1, h, w), averaged over windows."""
    x, y = x.to(torch.float64), y.to(torch.float64)
    average = _uniform if variant == "uniform7" else _gauss
    # OFFICIAL: scikit-image divides the sums of a flat window by one less than the number of pixels
    pixels = _UNIFORM_SIDE**2
    unbias = pixels / (pixels - 1) if variant == "uniform7" else 1.0
    m_x, m_y, m_xx, m_yy, m_xy = average(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    s_x, s_y, s_xy = unbias * (m_xx - m_x * m_x), unbias * (m_yy - m_y * m_y), unbias * (m_xy - m_x * m_y)
    c_1, c_2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    top = (2 * m_x * m_y + c_1) * (2 * s_xy + c_2)
    return (top / ((m_x * m_x + m_y * m_y + c_1) * (s_x + s_y + c_2))).mean((-3, -2, -1))


def _gauss(pictures: Tensor) -> Tensor:
    """Averages in Gaussian windows that lie inside: 11 shifted copies along each axis are summed by weight."""
    offsets = torch.arange(_GAUSS_SIDE, dtype=torch.float64) - _GAUSS_SIDE // 2
    weights = torch.exp(-0.5 * (offsets / _GAUSS_SIGMA) ** 2)
    for axis in (-2, -1):
        length = pictures.shape[axis] - _GAUSS_SIDE + 1
        shifted = [pictures.narrow(axis, i, length) for i in range(_GAUSS_SIDE)]
        total = torch.zeros_like(shifted[0])
        for weight, part in zip((weights / weights.sum()).tolist(), shifted):
            total.add_(part, alpha=weight)
        pictures = total
    return pictures


def _uniform(pictures: Tensor) -> Tensor:
    return avg_pool2d(pictures, _UNIFORM_SIDE, stride=1)


def _luma(frames: Tensor) -> Tensor:
    """Luminance (…, 1, h, w) in whole grey levels; grey frames are their own."""
    if frames.dtype != torch.uint8 or frames.shape[-3] not in (1, 3):
        raise ValueError(
            f"luminance is taken of 8-bit frames with 1 or 3 channels; these are {frames.dtype} with "
            f"{frames.shape[-3]}: choose the variant gauss11."
        )
    if frames.shape[-3] == 1:
        return frames
    red, green, blue = frames.to(torch.float64).unbind(-3)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).round().unsqueeze(-3)
