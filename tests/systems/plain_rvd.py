"""RVD's networks, loss and generation once more, as the description of the official code has them, to compare with.

One frame at a time, whole convolutions of concatenated inputs, weights by their official names; but for `pair`, which
fills both, nothing here knows the library. Frames are (B, C, H, W), clips lists of frames.
"""

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor

from framecast.experiment import VideoSpec
from framecast.systems.rvd.config import RVDConfig
from framecast.systems.rvd.rvd import RVD
from framecast.systems.rvd.weights import our_name

Weights = dict[str, Tensor]


def shapes(width: int, multipliers: list[int], transform: list[int], channels: int) -> dict[str, tuple[int, ...]]:
    """Every official parameter name and its shape."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int, bias: bool = True, out: int = 0) -> None:
        found[f"{name}.weight"] = weight
        if bias:
            found[f"{name}.bias"] = (out or weight[0],)

    def res(name: str, a: int, b: int, *, step: bool = False) -> None:
        for block, into in (("block1", a), ("block2", b)):
            layer(f"{name}.{block}.block.0", b, into, 3, 3)
            layer(f"{name}.{block}.block.1", b)
        if a != b:
            layer(f"{name}.res_conv", b, a, 1, 1)
        if step:
            layer(f"{name}.mlp.1", b, width)

    def attention(name: str, c: int) -> None:
        layer(f"{name}.fn.fn.to_qkv", 192, c, 1, 1, bias=False)
        layer(f"{name}.fn.fn.to_out", c, 64, 1, 1)
        found[f"{name}.fn.norm.g"] = found[f"{name}.fn.norm.b"] = (1, c, 1, 1)

    def recurrent(name: str, widths: list[int]) -> None:
        for i, (a, b) in enumerate(zip([channels, *widths], widths)):
            res(f"{name}.downs.{i}.0", a, b)
            layer(f"{name}.downs.{i}.1.conv_gates.0", 2 * b, 2 * b, 3, 3)
            layer(f"{name}.downs.{i}.1.conv_cans.0", b, 2 * b, 3, 3)
            if i + 1 < len(widths):
                layer(f"{name}.downs.{i}.2.conv", b, b, 3, 3)

    d, t = [width * m for m in multipliers], [width * m for m in transform]
    layer("denoise_fn.time_mlp.1", 4 * width, width)
    layer("denoise_fn.time_mlp.3", width, 4 * width)
    for i, (a, b) in enumerate(zip([channels, *d], d)):
        res(f"denoise_fn.downs.{i}.0", a, b, step=True)
        res(f"denoise_fn.downs.{i}.1", 2 * b, b, step=True)
        attention(f"denoise_fn.downs.{i}.2", b)
        if i + 1 < len(d):
            layer(f"denoise_fn.downs.{i}.3.conv", b, b, 3, 3)
    res("denoise_fn.mid_block1", d[-1], d[-1], step=True)
    attention("denoise_fn.mid_attn", d[-1])
    res("denoise_fn.mid_block2", d[-1], d[-1], step=True)
    for j, (a, b) in enumerate(zip(d[:0:-1], d[-2::-1])):
        res(f"denoise_fn.ups.{j}.0", 2 * a, b, step=True)
        res(f"denoise_fn.ups.{j}.1", b, b, step=True)
        attention(f"denoise_fn.ups.{j}.2", b)
        layer(f"denoise_fn.ups.{j}.3.conv", b, b, 4, 4)
    layer("denoise_fn.final_conv.0.block.0", width, width, 3, 3)
    layer("denoise_fn.final_conv.0.block.1", width)
    layer("denoise_fn.final_conv.1", channels, width, 1, 1)
    recurrent("history_fn", d)
    recurrent("transform_fn", t)
    for j, (a, b) in enumerate(zip(t[:0:-1], t[-2::-1])):
        res(f"transform_fn.ups.{j}.0", a if j == 0 else 2 * a, b)
        layer(f"transform_fn.ups.{j}.1.conv", b, b, 4, 4)
    layer("transform_fn.mu", channels, width, 3, 3)
    return found


def weights(wanted: dict[str, tuple[int, ...]], *, seed: int = 0) -> Weights:
    """Numbers for every name, so that no layer does nothing."""
    made = {}
    for name, shape in wanted.items():
        rng = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        noise = torch.randn(shape, generator=rng)
        if name.endswith(("bias", ".b")):
            made[name] = 0.2 * noise
        elif len(shape) == 1 or name.endswith(".g"):  # of a normalisation
            made[name] = 1 + 0.3 * noise
        else:
            made[name] = noise * (1.5 / math.prod(shape[1:])) ** 0.5
    return made


class Plain:
    """The three networks of one set of weights; the recurrent ones keep their states from call to call."""

    def __init__(self, weights: Weights, *, levels: int, transform_levels: int, groups: int = 8):
        self.w, self.groups = weights, groups
        self.levels = {"history_fn": levels, "transform_fn": transform_levels}
        self.states: dict[str, list[Tensor | None]] = {}
        self.start()

    def start(self) -> None:
        """Forget all frames."""
        self.states = {name: [None] * count for name, count in self.levels.items()}

    def conv(self, x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), **how)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def block(self, x: Tensor, name: str) -> Tensor:
        x = self.conv(x, f"{name}.block.0", padding=1)
        x = F.group_norm(x, self.groups, self.w[f"{name}.block.1.weight"], self.w[f"{name}.block.1.bias"], 1e-5)
        return torch.where(x > 0, x, 0.2 * x)

    def res(self, x: Tensor, name: str, e: Tensor | None = None) -> Tensor:
        h = self.block(x, f"{name}.block1")
        if e is not None:
            h = h + self.linear(torch.where(e > 0, e, 0.2 * e), f"{name}.mlp.1")[:, :, None, None]
        h = self.block(h, f"{name}.block2")
        return h + (self.conv(x, f"{name}.res_conv") if f"{name}.res_conv.weight" in self.w else x)

    def attention(self, x: Tensor, name: str) -> Tensor:
        mean = x.mean(dim=1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
        normed = (x - mean) / (variance + 1e-5).sqrt() * self.w[f"{name}.fn.norm.g"] + self.w[f"{name}.fn.norm.b"]
        q, k, v = (
            some.reshape(len(x), 4, 16, -1) for some in self.conv(normed, f"{name}.fn.fn.to_qkv").chunk(3, dim=1)
        )
        context = torch.einsum("bhdn,bhen->bhde", k.exp() / k.exp().sum(dim=-1, keepdim=True), v)
        out = torch.einsum("bhde,bhdn->bhen", context, q / 4)
        return x + self.conv(out.reshape(len(x), 64, *x.shape[2:]), f"{name}.fn.fn.to_out")

    def gru(self, x: Tensor, h: Tensor | None, name: str) -> Tensor:
        h = torch.zeros_like(x) if h is None else h
        r, z = self.conv(torch.cat([x, h], dim=1), f"{name}.conv_gates.0", padding=1).sigmoid().chunk(2, dim=1)
        new = self.conv(torch.cat([x, r * h], dim=1), f"{name}.conv_cans.0", padding=1).tanh()
        return (1 - z) * h + z * new

    def read(self, x: Tensor, network: str) -> list[Tensor]:
        """One frame through the way down of a recurrent network: the states after it."""
        found = []
        for i, h in enumerate(self.states[network]):
            name = f"{network}.downs.{i}"
            x = self.gru(self.res(x, f"{name}.0"), h, f"{name}.1")
            found.append(x)
            if i + 1 < self.levels[network]:
                x = self.conv(x, f"{name}.2.conv", stride=2, padding=1)
        self.states[network] = list(found)
        return found

    def up(self, x: Tensor, name: str) -> Tensor:
        return F.conv_transpose2d(x, self.w[f"{name}.conv.weight"], self.w[f"{name}.conv.bias"], stride=2, padding=1)

    def context(self, frame: Tensor) -> list[Tensor]:
        return self.read(frame, "history_fn")

    def expected(self, frame: Tensor) -> Tensor:
        """mu of the next frame, not clamped."""
        skips = self.read(frame, "transform_fn")
        x = skips.pop()
        for j in range(self.levels["transform_fn"] - 1):
            x = x if j == 0 else torch.cat([x, skips.pop()], dim=1)
            x = self.up(self.res(x, f"transform_fn.ups.{j}.0"), f"transform_fn.ups.{j}.1")
        return self.conv(x, "transform_fn.mu", padding=1)

    def denoised(self, y: Tensor, n: Tensor, context: list[Tensor]) -> Tensor:
        """What the denoiser says of y at levels n, one per row."""
        half = self.w["denoise_fn.time_mlp.1.weight"].shape[1] // 2
        angles = n.to(y)[:, None] * torch.tensor([10_000 ** (-k / (half - 1)) for k in range(half)]).to(y)
        e = F.gelu(self.linear(torch.cat([angles.sin(), angles.cos()], dim=1), "denoise_fn.time_mlp.1"))
        e = self.linear(e, "denoise_fn.time_mlp.3")
        x, skips, last = y, [], self.levels["history_fn"] - 1
        for i in range(last + 1):
            name = f"denoise_fn.downs.{i}"
            x = self.res(torch.cat([self.res(x, f"{name}.0", e), context[i]], dim=1), f"{name}.1", e)
            x = self.attention(x, f"{name}.2")
            skips.append(x)
            x = self.conv(x, f"{name}.3.conv", stride=2, padding=1) if i < last else x
        x = self.attention(self.res(x, "denoise_fn.mid_block1", e), "denoise_fn.mid_attn")
        x = self.res(x, "denoise_fn.mid_block2", e)
        for j in range(last):
            name = f"denoise_fn.ups.{j}"
            x = self.res(self.res(torch.cat([x, skips.pop()], dim=1), f"{name}.0", e), f"{name}.1", e)
            x = self.up(self.attention(x, f"{name}.2"), f"{name}.3")
        return self.conv(self.block(x, "denoise_fn.final_conv.0"), "denoise_fn.final_conv.1")


def alpha_bars(levels: int) -> list[float]:
    """Share of signal left at n = 0 .. levels - 1 of the cosine schedule, betas cut at 0.999."""
    found, kept = [], 1.0
    for i in range(levels):
        now, then = (math.cos((u / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (i + 1, i))
        kept *= 1 - min(1 - now / then, 0.999)
        found.append(kept)
    return found


def mu_of(plain: Plain, mode: str, frame: Tensor) -> Tensor:
    """What follows `frame`, as the mode expects it; the states of the transform network move on."""
    if mode == "none":
        return torch.zeros_like(frame)
    return frame if mode == "previous" else plain.expected(frame).clamp(-1, 1)


def loss(
    plain: Plain,
    clip: list[Tensor],
    n: Tensor,
    noise: list[Tensor],
    *,
    mode: str = "network",
    sigma: float = 1.0,
    target: str = "eps",
    power: int = 1,
    levels: int = 1600,
) -> Tensor:
    """The training loss of a clip; the frames that `noise` is for are its last ones."""
    plain.start()
    kept = torch.tensor(alpha_bars(levels), dtype=torch.float64)[n].to(clip[0])[:, None, None, None]
    total, first = torch.zeros(()).to(clip[0]), len(clip) - len(noise)
    context, mu = [], clip[0]
    for i, frame in enumerate(clip):
        if i >= first:
            y, eps = (frame - mu) / sigma, noise[i - first]
            y_n = kept.sqrt() * y + (1 - kept).sqrt() * eps
            wanted = {"eps": eps, "x_0": y, "v": kept.sqrt() * eps - (1 - kept).sqrt() * y}[target]
            total = total + ((wanted - plain.denoised(y_n, n, context)).abs() ** power).mean()
        if i + 1 < len(clip):
            context, mu = plain.context(frame), mu_of(plain, mode, frame)
    return total / len(noise)


def generate(
    plain: Plain,
    given: list[Tensor],
    noise: list[list[Tensor]],
    *,
    mode: str = "network",
    sigma: float = 1.0,
    target: str = "eps",
    bound: float | None = 2.0,
) -> list[Tensor]:
    """The frames after `given`, one per entry of `noise`, which holds the start and one tensor per step."""
    plain.start()
    context, mu, made = [], given[0], []
    for frame in given:
        context, mu = plain.context(frame), mu_of(plain, mode, frame)
    for start, *steps in noise:
        kept, y = alpha_bars(len(steps)), start
        for n, z in zip(reversed(range(len(steps))), steps):
            ab, before = kept[n], kept[n - 1] if n else 1.0
            beta = 1 - ab / before
            told = plain.denoised(y, torch.full((len(y),), n), context)
            clean = told if target == "x_0" else (y - math.sqrt(1 - ab) * told) / math.sqrt(ab)
            clean = math.sqrt(ab) * y - math.sqrt(1 - ab) * told if target == "v" else clean
            clean = clean if bound is None else clean.clamp(-bound, bound)
            y = (beta * math.sqrt(before) * clean + (1 - before) * math.sqrt(1 - beta) * y) / (1 - ab)
            if n:
                y = y + math.sqrt(beta * (1 - before) / (1 - ab)) * z
        made.append(mu + sigma * y)
        fed = made[-1].clamp(-1, 1)
        context, mu = plain.context(fed), mu_of(plain, mode, fed)
    return made


def pair(config: RVDConfig, *, channels: int, height: int, width: int) -> tuple[RVD, Plain]:
    """The library's model and the plain one with the same weights; patches are cut by whoever calls the plain one."""
    multipliers, transform = list(config.multipliers), list(config.transform_multipliers)
    made = weights(shapes(config.width, multipliers, transform, channels * config.patch**2))
    plain = Plain(made, levels=len(multipliers), transform_levels=len(transform), groups=config.groups)
    system = RVD(config, VideoSpec(channels=channels, height=height, width=width, clip_frames=4)).eval()
    named = {our_name(name): value for name, value in made.items()}
    for part, network in system.parts().items():
        fresh = {name: named.pop(f"{part}.{name}").reshape(old.shape) for name, old in network.state_dict().items()}
        network.load_state_dict(fresh)
    assert all(name.startswith("transform.") for name in named) and (not named or system.transform is None)
    return system, plain
