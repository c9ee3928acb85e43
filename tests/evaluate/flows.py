"""A folder that looks like vortex32: waves that travel, each at its own speed."""

from pathlib import Path

import torch

from framecast.data.array_file import write_array


def wave(number: int, frames: int) -> torch.Tensor:
    t, x = torch.arange(frames)[:, None, None], torch.arange(32.0)[None, None]
    y = torch.arange(32.0)[None, :, None]
    return (0.8 * torch.sin(0.4 * x + 0.1 * y * number - 2 * torch.pi * t / (9 + number / 16)))[:, None].float()


def write_flows(
    folder: Path, *, flows: int = 32, frames: int = 60, set_name: str = "vortex32", seed: int = 0, train: int = 3
) -> Path:
    for split, count in (("test", flows), ("train", train)):
        for number in range(count):
            told = {"set": set_name, "split": split, "number": number, "seed": seed, "period": 9 + number / 16}
            path = folder / split / f"flow_{number:04d}.npz"
            frame = wave(number + (0.5 if split == "train" else 0), frames)
            write_array(path, frame, fps=None, value_range=(-1.0, 1.0), generated_by=told)
    return folder
