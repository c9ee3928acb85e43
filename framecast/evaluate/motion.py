# SPDX-License-Identifier: Apache-2.0
"""Where things move between two frames, and where they will be if they move on: the motion-compensated forecast.

Hides a dense estimate of displacement (block matching at a coarse size, then Gauss-Newton steps at finer ones; Lucas
and Kanade 1981 in windows) and semi-Lagrangian transport of a frame along it. No network, no randomness.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from framecast.video import Video

Flow = Float[Tensor, "b 2 h w"]  # displacement in pixels: along the width, along the height

_COARSE, _FINE = 64, 256  # short sides, pixels: where blocks are matched, and the finest size at which motion is judged
_REACH = 5  # pixels of the coarse size that things may move between two frames
_DAMPING = 1e-2  # of a step, as a share of the mean strength of texture
_STEPS = 4  # Gauss-Newton steps per size
# windows (standard deviation in pixels, weight): the narrow one decides where it sees texture, the wide ones elsewhere
_WINDOWS = ((1.5, 1.0), (4.0, 0.1), (12.0, 0.01))


def motion(before: Float[Tensor, "b c h w"], after: Float[Tensor, "b c h w"]) -> Flow:
    """The displacement u with after(x) = before(x - u(x)), of every pixel.

    Args:
        before: frames in -1 to 1.
        after: the frames that followed them.

    Returns:
        Pixels per frame, subpixel; 0 where nothing tells of motion.

    Source: Lucas and Kanade (1981), An iterative image registration technique, for the Gauss-Newton step.
    """
    height, width = before.shape[-2:]
    sizes = [(height, width)]
    while min(sizes[-1]) > _COARSE:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    sizes = [size for size in sizes if min(size) <= _FINE][::-1]
    flow = _match(_shrunk(before, sizes[0]), _shrunk(after, sizes[0]))
    for size in sizes:
        flow = _refine(_shrunk(before, size), _shrunk(after, size), _stretched(flow, size))
    return _stretched(flow, (height, width))


def advect(frame: Float[Tensor, "b c h w"], flow: Flow, steps: int) -> Video:
    """The frame after 1 to `steps` further frames of motion, (B, steps, C, H, W).

    What is at x after n frames left it at X_n(x) = X_{n-1}(x - U_n(x)), and takes its own velocity along:
    U_{n+1}(x) = U_n(x - U_n(x)). What comes in over the edge repeats the edge.
    """
    velocity, path, made = flow, flow, []
    for _ in range(steps):
        made.append(_warped(frame, path))
        velocity = _warped(velocity, velocity)
        path = velocity + _warped(path, velocity)
    return torch.stack(made, dim=1)


def _match(before: Tensor, after: Tensor) -> Tensor:
    """The whole displacement within reach that makes the windows around every pixel most alike."""
    shifts = torch.arange(-_REACH, _REACH + 1)
    height, width = after.shape[-2:]
    wide = pad(before, (_REACH,) * 4, mode="replicate")
    costs, where = [], []
    for dy in shifts.tolist():
        for dx in shifts.tolist():
            moved = wide[..., _REACH - dy : _REACH - dy + height, _REACH - dx : _REACH - dx + width]
            costs.append((after - moved).square().mean(1) + 1e-6 * (dx * dx + dy * dy))  # between equals, the nearest
            where.append((dx, dy))
    best = _windowed(torch.stack(costs, dim=1)).argmin(1)
    return torch.tensor(where, dtype=after.dtype, device=after.device)[best].movedim(-1, 1)


def _refine(before: Tensor, after: Tensor, flow: Tensor) -> Tensor:
    """Gauss-Newton steps towards one displacement per window.

    With v the displacement so far and g the gradient of what it moves, after - moved + g (u - v) is to vanish, in the
    least squares over the window: (sum g g^T) u = sum g (g v - (after - moved)).
    """
    for _ in range(_STEPS):
        moved = _warped(before, flow)
        gx, gy = _slopes(moved)
        goal = gx * flow[:, :1] + gy * flow[:, 1:] - (after - moved)
        products = torch.stack([gx * gx, gy * gy, gx * gy, gx * goal, gy * goal], dim=1).mean(2)
        xx, yy, xy, xr, yr = _windowed(products).unbind(1)
        damped = _DAMPING * (xx + yy).mean((-2, -1), keepdim=True) + 1e-12  # where there is no texture nothing changes
        xx, yy, xr, yr = xx + damped, yy + damped, xr + damped * flow[:, 0], yr + damped * flow[:, 1]
        fresh = torch.stack([yy * xr - xy * yr, xx * yr - xy * xr], dim=1) / (xx * yy - xy * xy)[:, None]
        flow = flow + (fresh - flow).clamp(-1, 1)
    return flow


def _slopes(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along width and height; one-sided at the edges, halved."""
    wide = pad(frames, (1, 1, 1, 1), mode="replicate")
    across = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    return across, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2


def _windowed(maps: Tensor) -> Tensor:
    """Weighted sums over the windows around every pixel; beyond the edges there is nothing."""
    total = torch.zeros_like(maps)
    for deviation, weight in _WINDOWS:
        rows, columns = (_bell(side, deviation).to(maps) for side in maps.shape[-2:])
        total += weight * (rows @ maps @ columns)
    return total


def _bell(side: int, deviation: float) -> Tensor:
    """The Gaussian window along one side as a matrix: on sides this short a product is faster than a convolution."""
    at = torch.arange(side, dtype=torch.float32)
    return torch.exp(-((at - at[:, None]) ** 2) / (2 * deviation**2)) / (deviation * (2 * torch.pi) ** 0.5)


def _warped(frames: Tensor, flow: Tensor) -> Tensor:
    """frames(x - flow(x)), bilinear; positions beyond the edges see the edge."""
    height, width = frames.shape[-2:]
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] - flow[:, 1]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device) - flow[:, 0]
    spots = torch.stack([2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], dim=-1)
    return grid_sample(frames, spots, mode="bilinear", padding_mode="border", align_corners=True)


def _shrunk(frames: Tensor, size: tuple[int, int]) -> Tensor:
    return frames if tuple(frames.shape[-2:]) == size else interpolate(frames, size=size, mode="area")


def _stretched(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """The same motion in the pixels of another size."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    scale = torch.tensor([size[1] / width, size[0] / height], dtype=flow.dtype, device=flow.device)
    return interpolate(flow, size=size, mode="bilinear", align_corners=False) * scale[:, None, None]
