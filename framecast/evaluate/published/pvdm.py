# SPDX-License-Identifier: Apache-2.0
"""Protocols of "Video Probabilistic Diffusion Models in Projected Latent Space" (PVDM), its tables 1, 2, 4 and 5.

All at 256x256. Real clips come from the split that models are trained on, one window per video at a random start, up to
2,048 of them. "400/400" are the DDIM steps of the first and of the later windows of a clip.
"""

from __future__ import annotations

from framecast.evaluate.terms import Case, Cut, FrechetSettings, InceptionSettings, Protocol, Published, Value

_PAPER = "Yu et al., Video Probabilistic Diffusion Models in Projected Latent Space (CVPR 2023)"
_DDIM = {"sampler": "ddim", "steps": 400, "eta": 1.0}
_I3D = "TF-Hub i3d-kinetics-400"
_FRECHET = FrechetSettings(resize="short_side")
_KERNEL = "centre crop to a square, then bilinear without antialiasing"
_SETS = {"ucf": ("UCF-101", "ucf101"), "sky": ("SkyTimelapse", "sky-timelapse")}

_NO_128: Value = (None, "not applicable")
_TABLE_1: dict[str, tuple[Value, ...]] = {  # method: UCF FVD of 16 frames, of 128, Sky FVD of 16, of 128
    "VideoGPT": (2880.6, _NO_128, 222.7, _NO_128),
    "MoCoGAN": (2886.8, 3679.0, 206.6, 575.9),
    "MoCoGAN + StyleGAN2": (1821.4, 2311.3, 85.88, 272.8),
    "MoCoGAN-HD": (1729.6, 2606.5, 164.1, 878.1),
    "DIGAN": (1630.2, 2293.7, 83.11, 196.7),
    "StyleGAN-V": (1431.0, 1773.4, 79.52, 197.0),
    "PVDM-S 100/20-s": (457.4, 902.2, 71.46, 159.9),
    "PVDM-L 200/200-s": (398.9, 639.7, 61.70, 137.2),
    "PVDM-L 400/400-s": (343.6, 648.4, 55.41, 125.2),
}


def _fvd(frames: int, key: str) -> Protocol:
    title, folder = _SETS[key]
    column = (0 if key == "ucf" else 2) + (frames == 128)
    assumed = [
        "a random choice of 2,048 real videos where there are more; the code that baselines used takes the first"
    ]
    is_not = ["FVD against a test split, or against training and test clips together"]
    if key == "sky":
        is_not.append(
            "FVD of other frames: copies of the set, strides and sizes that differ moved it by a factor of four"
        )
    if frames == 128:
        assumed.append("128 frames are one window from nothing and seven that continue it")
    if frames == 128 and key == "sky":
        assumed.append("one real window of every training video of 128 frames or more, of which there are under 2,048")
    return Protocol(
        name=f"pvdm-fvd{frames}-{key}",
        about=f"{title}, {frames} frames from nothing, FVD",
        set=folder,
        split="train",
        channels=3,
        height=256,
        width=256,
        resampling=_KERNEL,
        task="generate",
        cases=(Case(known=(), frames=frames),),
        sets=Cut(how="random", clips=2048),
        real=Cut(how="random", clips=2048, choose="random", or_fewer=True),
        metrics=("fvd",),
        frechet=_FRECHET,
        quantise="truncate",
        sampler=_DDIM,
        weights={"fvd": _I3D},
        published=Published.rows("fvd", {method: values[column] for method, values in _TABLE_1.items()}),
        assumed=tuple(assumed),
        is_not=tuple(is_not),
        source=f"{_PAPER}, table 1",
    )


_INCEPTION = Protocol(
    name="pvdm-is-ucf",
    about="UCF-101, 16 frames from nothing, Inception Score",
    set="ucf101",
    split="train",
    channels=3,
    height=256,
    width=256,
    resampling=_KERNEL,
    task="generate",
    cases=(Case(known=(), frames=16),),
    metrics=("is",),
    inception=InceptionSettings(samples=10_000, splits=10, eps=1e-20),
    quantise="truncate",
    sampler=_DDIM,
    weights={"is": "C3D of UCF-101 as in TGANv2's evaluation, with its mean"},
    published=Published.rows(
        "is",
        {
            "MoCoGAN": (12.42, 0.07),
            "ProgressiveVGAN": (14.56, 0.05),
            "LDVD-GAN": (22.91, 0.19),
            "VideoGPT": (24.69, 0.30),
            "TGANv2": (28.87, 0.67),
            "StyleGAN-V*": (23.94, 0.73),
            "DIGAN": (29.71, 0.53),
            "VDM*": (57.00, 0.62),
            "TATS": (57.63, 0.24),
            "PVDM-L": (74.40, 1.25),
        },
    ),
    assumed=("10 splits of 1,000 clips, 1e-20 added to probabilities", "400 DDIM steps, as for FVD"),
    is_not=(
        "a score with another number of clips a split: fewer give less",
        "a score of models trained on training and test clips, marked * here",
    ),
    source=f"{_PAPER}, table 2",
)


def _reconstruction(key: str, split: str, values: tuple[float, float], *, clips: int, note: str = "") -> Protocol:
    title, folder = _SETS[key]
    cut = Cut(how="random", clips=clips, choose="random")
    return Protocol(
        name=f"pvdm-recon-{key}-{split}",
        about=f"{title}, {split} clips through the autoencoder, R-FVD and PSNR",
        set=folder,
        split=split,
        channels=3,
        height=256,
        width=256,
        resampling=_KERNEL,
        task="reconstruct",
        cases=(Case(known=(), frames=16),),
        paired=cut,
        sets=cut,
        metrics=("r-fvd", "psnr_clip"),
        frechet=_FRECHET,
        quantise="truncate",
        weights={"r-fvd": _I3D},
        published=tuple(
            row
            for metric, value in zip(("r-fvd", "psnr_clip"), values)
            for row in Published.rows(metric, {"PVDM": (value, note)})
        ),
        assumed=(
            f"the same {clips:,} clips for both; the released code stops after 513 batches for R-FVD, 101 for PSNR",
            "PSNR of 8-bit frames; the released code compares reconstructions before they are clamped and cut to bytes",
        ),
        is_not=(
            "FVD of drawn clips: it bounds what any prior on these latents can reach",
            "PSNR by frame, which is higher",
        ),
        source=f"{_PAPER}, table 4",
    )


_TABLE_5: dict[str, tuple[Value, ...]] = {  # method: largest training batch, seconds and GB of 16 frames, of 128
    "TATS": (0, 84.8, 18.7, 434, 19.2),
    "VideoGPT": (0, 139, 15.2, _NO_128, _NO_128),
    "VDM 100/20-s": (0, 113, 11.1, _NO_128, _NO_128),
    "PVDM-L 200/200-s": (2, 20.4, 5.22, 166, 5.22),
    "PVDM-L 400/400-s": (2, 40.9, 5.22, 328, 5.22),
    "PVDM-S 100/20-s": (7, 7.88, 4.33, 31.3, 4.33),
}
_COSTS = ("training batch", "seconds, 16 frames", "GB, 16 frames", "seconds, 128 frames", "GB, 128 frames")

PVDM = (
    *(_fvd(frames, key) for frames in (16, 128) for key in _SETS),
    _INCEPTION,
    _reconstruction("ucf", "train", (25.87, 27.34), clips=2048),
    _reconstruction("ucf", "test", (32.26, 26.99), clips=2048),
    _reconstruction("sky", "train", (7.37, 34.33), clips=2048),
    _reconstruction("sky", "test", (36.52, 32.68), clips=196, note="196 clips"),
    Protocol(
        name="pvdm-efficiency",
        about="time and memory on one RTX 3090 Ti of 24 GB, batch 1; largest training batch of 16 frames",
        set="none",
        split="none",
        channels=3,
        height=256,
        width=256,
        task="record",
        published=tuple(
            row
            for number, cost in enumerate(_COSTS)
            for row in Published.rows(cost, {method: values[number] for method, values in _TABLE_5.items()})
        ),
        is_not=("seconds on any other device: measure all that you compare on one",),
        source=f"{_PAPER}, table 5",
    ),
)
