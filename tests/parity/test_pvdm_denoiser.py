"""PVDM's latent denoiser, its loss and its samplers against tensors computed with the official code.

Latents are (B, C, L) there too, so nothing is turned round. All that a folder holds is compared.
"""

import copy
import json
import re
from dataclasses import replace
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framecast.diffusion.process import q_sample
from framecast.diffusion.sampling import ddim, ddpm
from framecast.diffusion.schedule import descending, scaled_linear, trailing_levels
from framecast.experiment import EmaConfig
from framecast.systems.pvdm.config import DenoiserConfig
from framecast.systems.pvdm.denoiser import Denoiser, denoise
from framecast.systems.pvdm.weights_denoiser import infer, official_name, read_denoiser, unwrapped
from framecast.train.ema import Average
from tests.parity.test_rvd import BUFFER, buffers
from tests.parity.walk import FORWARD, GRADIENT, TRAJECTORY, Case, error, folders
from tests.recorded import Recorded

PUBLISHED = {  # parameters by width, with and without a condition
    (256, True): 528_273_412,
    (256, False): 528_264_196,
    (128, True): 132_163_588,
    (128, False): 132_158_980,
}
INPUTS = ("unet.x", "unet.t", "unet.cond", "loss.z0", "loss.noise", "loss.t", "loss.cond")
FAR = 1e-2  # no rounding of a run of few steps reaches that
EMA = EmaConfig(decay=0.9999, warmup=10.0)  # per call of it: a training calls it every 25 steps


def settings(case: Case) -> DenoiserConfig:
    """The folder's settings in our words; what is left out stands as in the official constructor."""
    c = case.config["unet_config"]
    return DenoiserConfig(
        width=c["model_channels"],
        multipliers=tuple(c.get("channel_mult", (1, 2, 4, 8))),
        res_blocks=c["num_res_blocks"],
        attention=tuple(sorted(c["attention_resolutions"])),
        heads=max(c.get("num_heads", -1), 1),
        head_width=max(c.get("num_head_channels", -1), 0),
        scale_shift=c.get("use_scale_shift_norm", False),
        resample="residual" if c.get("resblock_updown", False) else "convolution",
        conditional=c.get("cond_model", False),
        noise_levels=case.config["timesteps"],
    )


def build(case: Case) -> Denoiser:
    """The network with the folder's weights, every one of which has a place in it."""
    c, config = case.config, settings(case)
    blank = replace(DenoiserConfig(), heads=config.heads, head_width=config.head_width, noise_levels=c["timesteps"])
    assert infer(case.weights, base=blank, where="weights") == (config, c["unet_config"]["in_channels"])
    side, frames = c["plane_side"], c["plane_frames"]
    network = Denoiser(config, channels=c["unet_config"]["in_channels"], planes=(side, side, frames)).eval()
    network.load_state_dict(read_denoiser(case.weights, network, where="weights"))
    return network


def condition(case: Case, network: Denoiser, kind: str, part: str) -> Tensor | None:
    """What a tensor called `..._cond` or `..._null` was computed with."""
    return case[f"{part}.cond"] if kind == "cond" and network.config.conditional else None


def looser(case: Case, name: str, limit: float, absolute: float) -> float:
    """The limit, or what the README allows where that is more."""
    return max(limit, absolute / (case.tensors[name].abs().max().item() or 1.0))


def check_network(case: Case, network: Denoiser) -> None:
    """Outputs, noisy latents and losses."""
    schedule = scaled_linear(case.config["timesteps"], case.config["linear_start"], case.config["linear_end"])
    for kind in ("cond", "null"):
        if (name := f"unet.out_{kind}") in case:
            ours = network(case["unet.x"], case["unet.t"], condition(case, network, kind, "unet"))
            case.close(name, ours, looser(case, name, FORWARD, 1e-5))
        if (name := f"loss.value_{kind}") in case:
            noisy = q_sample(schedule, case["loss.z0"], case["loss.t"], case["loss.noise"])
            case.close("loss.z_noisy", noisy, FORWARD)
            told = network(noisy, case["loss.t"], condition(case, network, kind, "loss"))
            loss = F.mse_loss(told, case["loss.noise"])
            case.close(name, loss[None], looser(case, name, FORWARD, 1e-5))
            if kind == "cond":
                check_gradients(case, network, loss)


def check_gradients(case: Case, network: Denoiser, loss: Tensor) -> None:
    wanted = [name for name in case.tensors if name.startswith("grad.")]
    if not wanted:
        return
    ours = {official_name(name): p for name, p in network.named_parameters()}
    theirs = [ours[name.removeprefix("grad.").removeprefix("diffusion_model.")] for name in wanted]
    for name, gradient in zip(wanted, torch.autograd.grad(loss, theirs), strict=True):
        case.close(name, gradient, GRADIENT)


def check_schedule(case: Case) -> None:
    schedule = scaled_linear(case.config["timesteps"], case.config["linear_start"], case.config["linear_end"])
    for name, ours in buffers(schedule).items():
        if f"schedule.{name}" in case:
            case.close(f"schedule.{name}", ours, BUFFER)


@torch.no_grad()
def drawn(case: Case, network: Denoiser, tag: str) -> dict[str, Tensor]:
    """A run with the recorded noise, watched at every step, in the network's precision."""
    c, dtype = case.config, network.stem.weight.dtype
    # the ancestral run is not listed; it is conditional wherever the network is
    told = c["trajectories"].get(tag, {"cond": "unet.cond" if network.config.conditional else None, "w": 0.0})
    levels = c["timesteps"] if tag in c["trajectories"] else c["ancestral_timesteps"]
    schedule = scaled_linear(levels, c["linear_start"], c["linear_end"])
    start, noise = case[f"{tag}.noise_init"].to(dtype), case[f"{tag}.noise_steps"].to(dtype)
    given = case[told["cond"]][: len(start)].to(dtype) if told["cond"] else None
    estimates = denoise(network, schedule, given, guidance=told["w"], bound=1.0 if c["clip_denoised"] else None)

    states: list[Tensor] = []

    def watch(x: Tensor, t: int) -> Tensor:
        states.append(x)
        return x

    if "eta" in told:
        times = descending(trailing_levels(levels, told["steps"]))
        rng = Recorded(list(noise) if told["eta"] else [])  # there noise is drawn even when none is added
        final = ddim(estimates, schedule, start, times, rng=rng, eta=told["eta"], before=watch)
    else:
        times, rng = descending(range(levels)), Recorded(list(noise))
        final = ddpm(estimates, schedule, start, times, rng=rng, variance="small", before=watch)
    assert not rng.left["normal"]
    return {"final": final, "states": torch.stack(states), "times": torch.tensor(times), "betas": schedule.beta}


def check_trajectory(case: Case, network: Denoiser, tag: str) -> None:
    """Every state of a run.

    Without training a network carries rounding far, theirs in float32 up to 7e-4 from what is exact. Ours is computed
    in float64, and may differ twice as much as it does from itself in float32 where that is more than is allowed.
    """
    ours = drawn(case, copy.deepcopy(network).double(), tag)
    for kind in {"times", "betas"} & {name.removeprefix(f"{tag}.") for name in case.tensors}:
        case.close(f"{tag}.{kind}", ours[kind], {"times": 0.0, "betas": BUFFER}[kind])
    limits = {kind: looser(case, f"{tag}.{kind}", TRAJECTORY, 1e-3) for kind in ("states", "final")}
    if any(error(ours[kind], case.tensors[f"{tag}.{kind}"]) > limit for kind, limit in limits.items()):
        coarse = drawn(case, network, tag)
        limits = {kind: max(limit, 2 * error(coarse[kind], ours[kind])) for kind, limit in limits.items()}
        assert max(limits.values()) < FAR
    for kind, limit in limits.items():
        case.close(f"{tag}.{kind}", ours[kind], limit)


def check_average(case: Case) -> None:
    """An average of weights that begins as the weights are, updated at every call."""
    layer = nn.Linear(*reversed(case["ema.weight_0"].shape), bias=False)
    with torch.no_grad():
        layer.weight.copy_(case["ema.weight_0"])
    average, after = Average({"layer": layer}, EMA), []
    for call, weight in enumerate(case["ema.weight_updates"], start=1):
        with torch.no_grad():
            layer.weight.copy_(weight)
        average.update("layer", call)
        after.append(average.kept["layer"][0].clone())
    case.close("ema.shadow_after", torch.stack(after), FORWARD)


@pytest.mark.parametrize("folder", folders("pvdm-ddpm"))
def test_denoiser_agrees_with_the_official_code(folder):
    case = Case(folder)
    network = build(case)
    for name in INPUTS:  # a network without a condition does not read all of them
        if name in case:
            case.seen.add(name)
    check_network(case, network)
    check_schedule(case)
    for tag in [*case.config["trajectories"], *(["ancestral"] if case.config["ancestral_timesteps"] else [])]:
        check_trajectory(case, network, tag)
    if "ema.weight_0" in case:
        check_average(case)
    print({name: f"{value:.1e}" for name, value in sorted(case.errors.items())})
    case.finish()


@pytest.mark.parametrize("folder", folders("pvdm-shapes"))
def test_published_denoisers_have_the_official_names_and_shapes(folder):
    lists = sorted(folder.glob("denoiser*.json"))
    assert lists
    for path in lists:
        shapes = json.loads(path.read_text())
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        blank = DenoiserConfig(width=32, multipliers=(1,), res_blocks=1, attention=(), scale_shift=False)
        config, channels = infer(state, base=blank, where=path.name)
        assert (config, channels) == (DenoiserConfig(width=config.width, conditional=config.conditional), 4)
        count = sum(prod(shape) for name, shape in shapes.items() if not name.endswith("zeros"))
        assert count == PUBLISHED[config.width, config.conditional]
        with torch.device("meta"):
            network = Denoiser(config, channels=channels, planes=(32, 32, 16))
        assert read_denoiser(state, network, where=path.name).keys() == network.state_dict().keys()


@pytest.mark.parametrize(("width", "conditional"), PUBLISHED)
def test_published_denoisers_have_the_published_number_of_parameters(width, conditional):
    with torch.device("meta"):
        network = Denoiser(DenoiserConfig(width=width, conditional=conditional), channels=4, planes=(32, 32, 16))
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[width, conditional]


@pytest.mark.parametrize("folder", folders("pvdm-shapes"))
def test_any_other_shape_or_name_is_refused(folder):
    shapes = json.loads((folder / "denoiser_l.json").read_text())
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        network = Denoiser(DenoiserConfig(), channels=4, planes=(32, 32, 16))
    for name in list(unwrapped(state))[:: len(state) // 6]:
        wrapped = f"diffusion_model.{name}"
        spoiled = state | {wrapped: torch.empty((*shapes[wrapped], 2), device="meta")}
        lacking = {key: value for key, value in state.items() if key != wrapped}
        for wrong in (spoiled, lacking):
            with pytest.raises(ValueError, match=re.escape(name)):
                read_denoiser(wrong, network, where="weights")
    with pytest.raises(ValueError, match=r"holds the tensor input_attns\.0\.norm\.weight"):
        read_denoiser(state | {"input_attns.0.norm.weight": state[wrapped]}, network, where="weights")
