"""RVD against tensors computed with the official code.

A name in a folder is `<mode>/<group>/<tensor>`: the mode (rvd, vd, simple_rvd, sigma<number>; left out where there is
one), `fwd`, `train...` or `gen...`, what is compared. Inputs may be shared between modes and groups. All that a folder
holds is compared, whatever its modes and variants are; its axes are T, B, C, H, W.
"""

import re
from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framecast.assets import Assets
from framecast.diffusion import process, sampling
from framecast.diffusion.schedule import Schedule, cosine
from framecast.experiment import VideoSpec
from framecast.systems.rvd.config import ForecastStageConfig, RVDConfig, RVDSampling
from framecast.systems.rvd.network import step_embedding
from framecast.systems.rvd.rvd import RVD, Seen, residual_range
from framecast.systems.rvd.weights import our_name
from tests.parity.walk import FORWARD, GRADIENT, TRAJECTORY, Case, error, folders
from tests.recorded import Recorded

PARTS = {"history_fn": "context", "transform_fn": "transform", "denoise_fn": "denoiser"}
MODE = r"rvd|vd|simple_rvd|sigma[\d.]+"
BUFFER = 1e-7  # tables are computed in double precision there too, but stored as float32
NUDGES = (0.0, 2.0**-23, -(2.0**-23), 2.0**-22, -(2.0**-22))  # relative changes of an input within its rounding
LOSSES = {"l1": lambda gap: gap.abs(), "l2": lambda gap: gap.square()}
TARGETS = {"noise": "eps", "pred_true": "x_0"}


@dataclass(frozen=True)
class Group:
    """One group of tensors: its mode and its name, and where its tensors and inputs are."""

    case: Case
    mode: str
    name: str

    @property
    def prefix(self) -> str:
        return f"{self.mode}/{self.name}/" if self.mode else f"{self.name}/"

    @property
    def wanted(self) -> list[str]:
        return [name.removeprefix(self.prefix) for name in self.case.tensors if name.startswith(self.prefix)]

    def given(self, name: str) -> Tensor:
        """An input, from this group or the nearest one that it shares inputs with."""
        kind = self.name.partition("_")[0]
        tried = [f"{self.prefix}{name}", f"{self.mode}/{kind}/{name}", f"{kind}/{name}"]
        found = [path for path in tried if path in self.case]
        assert found, f"{self.prefix} has no {name}"
        return self.case[found[0]]

    def limits(self, ours: dict[str, Tensor], told: dict[str, tuple[float, str]]) -> dict[str, float]:
        """The largest relative error of every tensor of the group that is among `ours`.

        Args:
            ours: by name.
            told: by what a name begins with ("" for all others): our limit, and the folder's word for its own.
        """
        found = {}
        for name in set(self.wanted) & set(ours):
            limit, word = told[max((start for start in told if name.startswith(start)), key=len)]
            found[name] = max(limit, stated(self.case, word, self.case.tensors[self.prefix + name]))
        return found

    def compare(self, ours: dict[str, Tensor], limits: dict[str, float]) -> None:
        for name, limit in limits.items():
            self.case.close(self.prefix + name, ours[name], limit)

    def agrees(self, ours: dict[str, Tensor], limits: dict[str, float]) -> bool:
        """Whether `compare` would find nothing."""
        return all(error(ours[name], self.case.tensors[self.prefix + name]) <= limits[name] for name in limits)


def stated(case: Case, word: str, theirs: Tensor) -> float:
    """The folder's own tolerance, relative to the largest value."""
    told = case.config.get("suggested_atol", {})
    found = told.get(word, told.get(f"{word} (relative)", 0.0))
    if isinstance(found, str):  # "rtol 1e-3"
        return float(found.split()[-1])
    return found if word not in told else found / (theirs.abs().max().item() or 1.0)


def groups(case: Case, kind: str) -> list[Group]:
    """All groups of that kind in the folder, in all modes."""
    found = {re.match(rf"(?:({MODE})/)?({kind}[^/]*)/", name) for name in case.tensors} - {None}
    names = {(match[1] or "", match[2]) for match in found}
    alone = {mode for mode, _ in names} == {""}
    # without a mode there are only the inputs that modes share
    return [Group(case, mode, name) for mode, name in sorted(names) if mode or alone]


def build(group: Group, *, noise_levels: int, target: str = "eps") -> RVD:
    """The mode's model with the folder's weights, every one of which has a place in it."""
    c, mode = group.case.config, group.mode or "rvd"
    prediction = {"vd": "none", "simple_rvd": "previous"}.get(mode, "network")
    if not group.mode and c.get("transform_mode", "residual") != "residual":
        prediction = "none"
    sigma = float(mode.removeprefix("sigma")) if mode.startswith("sigma") else c.get("sigma", 1.0)
    config = RVDConfig(
        width=c["dim"],
        multipliers=tuple(c["dim_mults"]),
        transform_multipliers=tuple(c["transform_dim_mults"]),
        noise_levels=noise_levels,
        prediction=prediction,
        sigma=1.0 if prediction == "none" else sigma,
        target=target,
    )
    spec = VideoSpec(channels=c["channels"], height=c["height"], width=c["width"], clip_frames=8)
    system = RVD(config, spec, RVDSampling(steps=noise_levels)).eval()
    state = {our_name(name): value for name, value in group.case.weights.items() if name.partition(".")[0] in PARTS}
    for part, network in system.parts().items():
        own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        assert own.keys() == shapes.keys()
        network.load_state_dict({name: value.reshape(shapes[name]) for name, value in own.items()})
    return system


def buffers(schedule: Schedule) -> dict[str, Tensor]:
    """The process's tables under their official names."""
    ab, variance = schedule.alpha_bar, schedule.posterior_variance
    return {
        "betas": schedule.beta,
        "alphas_cumprod": ab,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "sqrt_alphas_cumprod": ab.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - ab).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - ab).log(),
        "sqrt_recip_alphas_cumprod": (1 / ab).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / ab - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": schedule.posterior_x_0,
        "posterior_mean_coef2": schedule.posterior_x_t,
    }


def check_weights(case: Case) -> None:
    """Everything in the weight file is a parameter of ours or a table of the schedule, which agrees."""
    tables = {name: value for name, value in case.weights.items() if name.partition(".")[0] not in PARTS}
    ours = buffers(cosine(case.config["timesteps"]))
    assert tables.keys() <= ours.keys()
    for name, value in tables.items():
        assert error(ours[name], value) <= BUFFER, name
    assert sum(v.numel() for n, v in case.weights.items() if n not in tables) == case.config["n_parameters"]


def check_forward(group: Group) -> None:
    """Frames one after another, states carried; the denoiser under what was read."""
    system, seen = build(group, noise_levels=group.case.config["timesteps"]), None
    assert system.denoiser is not None
    ours: dict[str, Tensor] = {}
    for f in sorted({int(found[1]) for name in group.wanted if (found := re.match(r"frame(\d+)/", name))}):
        x = group.given(f"frame{f}/x")
        if system.transform is not None:
            ours[f"frame{f}/mu_unclamped"] = system.transform(x[:, None], seen and seen.transform)[0][:, 0]
        seen = system.read(x[:, None], seen)
        ours |= states(seen, f"frame{f}/") | {f"frame{f}/mu": seen.mu}
        if f"frame{f}/n" not in group.wanted:
            continue
        y_n, n = group.given(f"frame{f}/y_n"), group.given(f"frame{f}/n")
        sinusoid = step_embedding(n, system.config.width)
        ours |= {f"frame{f}/sinusoidal": sinusoid, f"frame{f}/time_emb": system.denoiser.time(sinusoid)}
        ours[f"frame{f}/eps"] = system.denoiser(y_n, n, system.denoiser.prepare(seen.context))
    assert seen is not None
    ours |= states(seen, "final_state/")
    group.compare(ours, group.limits(ours, {"": (FORWARD, "fwd")}))


def states(seen: Seen, place: str) -> dict[str, Tensor]:
    """States of both recurrent networks by name."""
    context = {f"{place}context{level}": state for level, state in enumerate(seen.context)}
    return context | {f"{place}transform{level}": state for level, state in enumerate(seen.transform)}


def check_training(group: Group, patch: pytest.MonkeyPatch) -> None:
    """Loss and gradients.

    A gradient jumps (by 1e-4 of its norm in networks this small) where one value at a LeakyReLU changes its sign, and
    with values of 1e-7 that is a matter of rounding. Then the same may agree with GroupNorm as it is computed where
    pixels lie side by side (where channels do it is less exact), or with a clip moved within its own rounding.
    """
    told = {"": (FORWARD, "train tensors"), "loss": (FORWARD, "losses")}
    told |= {"grad/": (GRADIENT, "grad"), "gradnorm/": (GRADIENT, "gradnorm")}
    for nudge, norm in product(NUDGES, (nn.GroupNorm.forward, norm_of_rows)):
        with patch.context() as p:
            p.setattr(nn.GroupNorm, "forward", norm)
            ours = trained(group, p, nudge)
        limits = group.limits(ours, told)
        if group.agrees(ours, limits):
            break
    group.compare(ours, limits)


def norm_of_rows(self: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)


def trained(group: Group, patch: pytest.MonkeyPatch, nudge: float) -> dict[str, Tensor]:
    """The stage's own loss, fed with the recorded level and noise and watched; its gradients."""
    c = group.case.config
    said = re.fullmatch(r"train(?:_(noise|pred_true)_(l1|l2))?", group.name)
    assert said, f"nothing is known of {group.name}"
    target, size = TARGETS[said[1] or c["pred_mode"]], said[2] or c["loss_type"]
    system = build(group, noise_levels=c["timesteps"], target=target)
    clip, noise = group.given("video").transpose(0, 1) * (1 + nudge), group.given("noise").transpose(0, 1)
    n = group.given("n")
    rows, count = noise.shape[:2]
    settings = ForecastStageConfig(clip_frames=clip.shape[1], context=clip.shape[1] - count, loss=size)
    stage = system.stage("forecast", settings, Assets(dir=None))  # type: ignore[arg-type]
    assert system.denoiser is not None

    watched: dict[str, Tensor] = {}
    noising = process.q_sample

    def q_sample(schedule: Schedule, y_0: Tensor, n: Tensor, eps: Tensor) -> Tensor:
        watched["y0"], watched["y_n"] = y_0, noising(schedule, y_0, n, eps)
        return watched["y_n"]

    hook = system.denoiser.register_forward_hook(lambda m, i, output: watched.update(denoiser_out=output))
    rng = Recorded([noise], integers=[n])
    patch.setattr(process, "q_sample", q_sample)
    examples = stage.examples(clip, torch.ones(clip.shape[:2], dtype=torch.bool), rng)
    total = stage.loss(examples, step=0, turn="forecast", rng=rng).total
    hook.remove()
    total.backward()

    ours = {name: value.unflatten(0, (rows, count)).transpose(0, 1) for name, value in watched.items()}
    ours["mu"] = clip[:, -count:].transpose(0, 1) - system.config.sigma * ours["y0"]
    wanted = ours["y0"] if target == "x_0" else noise.transpose(0, 1)
    ours["loss_per_frame"] = LOSSES[size](wanted - ours["denoiser_out"]).mean(dim=(1, 2, 3, 4))
    ours["loss"] = total[None]
    gradients = {f"{part}.{n}": p.grad for part, net in system.parts().items() for n, p in net.named_parameters()}
    for name in group.wanted:
        if name.startswith("grad/"):
            found = gradients[our_name(name.removeprefix("grad/"))]
            ours[name] = found.reshape(group.case.tensors[group.prefix + name].shape)
    for official, part in PARTS.items():
        own = [g.double().flatten() for name, g in gradients.items() if name.startswith(f"{part}.")]
        if own:
            ours[f"gradnorm/{official}"] = torch.cat(own).norm()[None]
    return ours


def check_generation(group: Group, patch: pytest.MonkeyPatch) -> None:
    """Frames drawn one after another with the recorded noise, watched at every step."""
    c = group.case.config
    said = re.fullmatch(r"gen(?:_(noclip)|_clip([\d.]+))?", group.name)
    assert said, f"nothing is known of {group.name}"
    shared = group.given("context_frames").transpose(0, 1)
    spelled = {name for name in group.case.tensors if name.endswith("/noise_init")}
    count = len({re.search(r"frame\d+", name)[0] for name in spelled})
    start = [group.given(f"frame{f}/noise_init") for f in range(count)]
    later = [group.given(f"frame{f}/noise_steps") for f in range(count)]
    system = build(group, noise_levels=len(later[0]), target=TARGETS[c["pred_mode"]])
    bound = None if said[1] or not c["clip_noise"] else float(said[2] or c["y0_clip"])
    if bound == residual_range(system.config):
        bound = "range"  # what it stands for unless told otherwise

    states, means = [], []
    step, draw = sampling.ddpm_step, RVD.draw

    def watched_step(*args, **kwargs):
        states.append(step(*args, **kwargs))
        return states[-1]

    def watched_draw(self, seen, times, **kwargs):
        means.append(seen.mu)
        return draw(self, seen, times, **kwargs)

    frames = torch.cat([shared, torch.zeros_like(shared[:, :1]).expand(-1, count, -1, -1, -1)], dim=1)
    rng = Recorded([noise for f in range(count) for noise in (start[f], *later[f])])
    options = RVDSampling(sampler="ddpm", steps=len(later[0]), bound=bound, given="model")
    with patch.context() as p:
        p.setattr(sampling, "ddpm_step", watched_step)
        p.setattr(RVD, "draw", watched_draw)
        known = torch.arange(frames.shape[1]) < shared.shape[1]
        made, _ = system.sample(frames, known, rng=rng, options=options)
    assert not rng.left["normal"]

    ours = {"video": made.transpose(0, 1)} | {f"schedule/{n}": v for n, v in buffers(system.schedule).items()}
    for f, (mu, noise) in enumerate(zip(means, start, strict=True)):
        path = [noise, *states[f * len(later[0]) : (f + 1) * len(later[0])]]
        ours |= {f"frame{f}/mu": mu, f"frame{f}/y0": path[-1], f"frame{f}/trajectory": torch.stack(path)}
    word = group.name if group.name in c.get("suggested_atol", {}) else "gen"
    group.compare(ours, group.limits(ours, {"": (TRAJECTORY, word), "schedule/": (BUFFER, "schedule")}))


@pytest.mark.parametrize("folder", folders("rvd"))
def test_rvd_agrees_with_the_official_code(folder, monkeypatch):
    case = Case(folder)
    check_weights(case)
    with torch.no_grad():
        for group in groups(case, "fwd"):
            check_forward(group)
    for group in groups(case, "train"):
        check_training(group, monkeypatch)
    for group in groups(case, "gen"):
        check_generation(group, monkeypatch)
    print({name: f"{value:.1e}" for name, value in sorted(case.errors.items())})
    case.finish()
