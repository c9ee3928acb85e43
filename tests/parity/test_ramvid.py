"""RaMViD against tensors computed with the official code."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from framecast.assets import Assets
from framecast.diffusion import sampling
from framecast.diffusion.schedule import descending, kept_levels
from framecast.experiment import DataConfig, VideoSpec
from framecast.nn.blocks import step_embedding
from framecast.systems.ramvid import ramvid, weights
from framecast.systems.ramvid.config import DiffusionStageConfig, RaMViDConfig, RaMViDExperiment, RaMViDSampling
from framecast.systems.ramvid.network import UNet3D
from framecast.systems.ramvid.ramvid import RaMViD
from tests.parity.walk import FORWARD, GRADIENT, SCHEDULE, TRAJECTORY, Case, error, folders, known_of, video
from tests.recorded import Recorded

LABELS = ("y", "labels", "label", "classes", "class", "class_labels")


def settings_of(c: dict) -> RaMViDConfig:
    """Our settings for a fixture's official hyperparameters."""
    levels = [2**level for level in range(len(c["channel_mult"]))]
    return RaMViDConfig(
        width=c["num_channels"],
        multipliers=tuple(c["channel_mult"]),
        res_blocks=c["num_res_blocks"],
        attention=tuple(factor for factor in levels if factor in c["attention_ds"]),
        heads=c["num_heads"],
        heads_up=max(c["num_heads_upsample"], 0),
        groups=c["groupnorm_groups"],
        scale_shift=c["use_scale_shift_norm"],
        dropout=c["dropout"],
        learned_variance=c["learn_sigma"],
        variance="small" if c["sigma_small"] else "large",
        target="x_0" if c["predict_xstart"] else "eps",
        time_frames=c["scale_time_dim"],
        classes=c["num_classes"] or 0,
        schedule=c["noise_schedule"],
        noise_levels=c["diffusion_steps"],
    )


def build(case: Case) -> RaMViD:
    c = case.config
    some = next(name for name in case.tensors if name in ("forward.x", "train.x0"))
    height, width = case.tensors[some].shape[-2:]
    spec = VideoSpec(channels=c["channels"], height=height, width=width, clip_frames=c["frames"])
    system = RaMViD(settings_of(c), spec)
    system.network.load_state_dict(case.weights)  # strict: names and shapes are the official ones
    return system.eval()


def labels_of(case: Case, group: str, settings: dict | None = None) -> Tensor | None:
    """Class labels of a forward pass, a training batch or a trajectory, wherever the folder keeps them."""
    if not case.config["num_classes"]:
        return None
    for name in case.tensors:
        if name.startswith(f"{group}.") and (name.endswith(".y") or "label" in name or "class" in name):
            return case[name].long()
    for place, keys in ((case.config, [f"{group}_{word}" for word in LABELS]), (settings or {}, LABELS)):
        for key in keys:
            if key in place:
                return torch.as_tensor(place[key]).reshape(-1)
    return None


def check_schedule(case: Case, system: RaMViD) -> None:
    case.close("schedule.betas", system.schedule.beta, SCHEDULE)
    case.close("schedule.alphas_cumprod", system.schedule.alpha_bar, SCHEDULE)
    case.close("schedule.posterior_variance", system.schedule.posterior_variance, SCHEDULE)


def check_forward(case: Case, system: RaMViD) -> None:
    network, found = system.network, {}
    hooks = [
        getattr(network, name).register_forward_hook(lambda m, i, o, name=name: found.__setitem__(name, o))
        for name in ("middle_block", "time_embed")
    ]
    hooks.append(network.input_blocks[0].register_forward_hook(lambda m, i, o: found.__setitem__("stem", o)))
    t = case["forward.t_model"]
    case.close("forward.t_model", system.model_time(case["forward.t_index"]), FORWARD)
    with torch.no_grad():
        output = network(video(case["forward.x"]), t, labels_of(case, "forward"))
    for hook in hooks:
        hook.remove()
    case.close("forward.sinusoid", step_embedding(t, system.config.width), FORWARD)
    case.close("forward.emb", found["time_embed"], FORWARD)
    case.close("forward.stem", found["stem"][:1, :8], FORWARD)
    case.close("forward.middle", found["middle_block"][:, :8], FORWARD)
    case.close("forward.output", video(output), FORWARD)
    if "forward.mask" in case:  # not an input: only how x was made
        assert known_of(case["forward.mask"]).shape == output.shape[:2]


def check_losses(case: Case, system: RaMViD) -> Tensor:
    """Per-clip losses from the public pieces; returns the official objective of each clip."""
    schedule, target = system.schedule, system.config.target
    clip, t = video(case["train.x0"]), case["train.t_index"].long()
    known = known_of(case["train.mask"])
    x_t, eps = ramvid.noised(schedule, clip, known, t, video(case["train.noise"]))
    case.close("train.x_t", video(x_t), FORWARD)
    case.close("train.t_model", system.model_time(t), FORWARD)
    with torch.no_grad():
        output = system.network(x_t, system.model_time(t), labels_of(case, "train"))
    case.close("train.model_output", video(output), FORWARD)
    output, share = output.chunk(2, dim=2) if system.config.learned_variance else (output, None)
    wanted = clip if target == "x_0" else eps
    everything = torch.ones_like(known)
    mse = ramvid.mean_over((output - wanted) ** 2, ~known)
    case.close("train.mse", mse, FORWARD)
    case.close("train.mse_include_cond", ramvid.mean_over((output - wanted) ** 2, everything), FORWARD)
    loss = mse
    if share is not None:
        bits = ramvid.bound_terms(schedule, clip, x_t, t, output=output, share=share, target=target)
        factor = schedule.noise_levels / 1000
        unknown, whole = ramvid.mean_over(bits, ~known) * factor, ramvid.mean_over(bits, everything) * factor
        divergence = known[:, :, None, None, None] & (t > 0)[:, None, None, None, None]
        zeroed = ramvid.mean_over(bits.masked_fill(divergence, 0.0), everything) * factor
        loss = mse + unknown
        variants = {"vb_all": whole, "vb_zeroed": zeroed, "vb_unknown_mean": unknown}
        for name, value in variants.items():
            if f"train.{name}" in case:
                case.close(f"train.{name}", value, FORWARD)
            if f"train.loss_{name}" in case:
                case.close(f"train.loss_{name}", mse + value, FORWARD)
    if "train.loss" in case:
        case.close("train.loss", loss, FORWARD)
    return loss


def check_gradients(case: Case, system: RaMViD, loss: Tensor, patch: pytest.MonkeyPatch) -> None:
    """Gradients of the stage's own loss, fed with the recorded masks, levels and noise."""
    clip, known = video(case["train.x0"]), known_of(case["train.mask"])
    labels = labels_of(case, "train")
    if labels is not None:  # the stage itself has no labels: hand them to the network behind its back
        forward = system.network.forward
        patch.setattr(system.network, "forward", lambda x, t, _=None: forward(x, t, labels))
        patch.setattr(system, "config", replace(system.config, classes=0))
    settings = DiffusionStageConfig(
        clip_frames=clip.shape[1], max_known=clip.shape[1] - 1, unconditional_rate=case.config["uncondition_rate"]
    )
    stage = system.stage("diffusion", settings, Assets(dir=None))  # type: ignore[arg-type]
    none = ~known.any(dim=1)
    rng = Recorded(
        [video(case["train.noise"])],
        uniform=[torch.where(none, -1.0, 2.0), (~known).float()],
        integers=[known.sum(1), case["train.t_index"].long()],
    )
    examples = stage.examples(clip, torch.ones_like(known), rng)
    total = stage.loss(examples, step=0, turn="diffusion", rng=rng).total
    assert abs(total.item() - loss.mean().item()) <= FORWARD * abs(loss.mean().item())
    system.network.zero_grad()
    total.backward()
    gradients = {name: p.grad for name, p in system.network.named_parameters()}
    for name in case.tensors:
        if name.startswith("train.grad."):
            case.close(name, gradients[name.removeprefix("train.grad.")], GRADIENT)
    norm = math.sqrt(sum(g.double().pow(2).sum().item() for g in gradients.values()))
    case.close("train.grad_norm", torch.tensor(norm), GRADIENT)
    system.network.zero_grad()


def check_trajectory(case: Case, system: RaMViD, s: dict, patch: pytest.MonkeyPatch) -> None:
    """One sampling run through `RaMViD.sample`, watched at every evaluation."""
    name, visits = s["name"], s.get("resampling_steps", 1)
    kept = kept_levels(system.config.noise_levels, s["respacing"])
    case.equal(f"{name}.timestep_map", torch.tensor(kept))
    process, _ = sampling.respaced(system.schedule, descending(kept))
    case.close(f"{name}.betas", process.beta, SCHEDULE)

    start = video(case[f"{name}.init_noise"])
    known = torch.zeros(start.shape[1], dtype=torch.bool)
    known[case[f"{name}.cond_index"].long()] = True
    assert known.nonzero().flatten().tolist() == sorted(s["cond_frames"])
    frames = torch.zeros_like(start)
    if f"{name}.cond_frames" in case:
        frames[:, case[f"{name}.cond_index"].long()] = video(case[f"{name}.cond_frames"])
    noise = [video(z) for z in case[f"{name}.step_noise"]] if f"{name}.step_noise" in case else []
    labels = labels_of(case, name, s)

    options = RaMViDSampling(
        sampler=s["method"],
        steps=s["respacing"],
        eta=s.get("eta", 0.0),
        clip=s["clip_denoised"],
        resample=visits,
        given="model",
        label=None if labels is None else int(labels[0]),
    )
    states, times, clean = [], [], []
    into, read = ramvid.known_into, sampling.estimate

    def watched_into(x, frames, known):
        states.append(x)
        return into(x, frames, known)

    def watched_read(*args, **kwargs):
        clean.append(read(*args, **kwargs))
        return clean[-1]

    with patch.context() as p:
        p.setattr(ramvid, "known_into", watched_into)
        p.setattr(sampling, "estimate", watched_read)
        if labels is not None and len(set(labels.tolist())) > 1:  # ours draws one class per call
            forward = system.network.forward
            p.setattr(system.network, "forward", lambda x, t, _: forward(x, t, labels))
        hook = system.network.register_forward_pre_hook(lambda m, inputs: times.append(inputs[1][0]))
        last, _ = system.sample(frames, known, rng=Recorded([start, *noise]), options=options)
        hook.remove()
    case.close(f"{name}.model_t", torch.stack(times), FORWARD)
    # an x_0 read off predicted noise repeats the network's own float32 error (1e-6) sqrt(1 / alpha_bar - 1) times
    blown_up = (1 / system.schedule.alpha_bar[kept[-1]] - 1).sqrt().item() if system.config.target == "eps" else 1.0
    limit = max(TRAJECTORY, FORWARD / 10 * blown_up)
    case.close(f"{name}.pred_x0_first", video(clean[visits - 1].x_0), limit)  # of the last visit
    after = [*states[visits::visits], last]
    case.close(f"{name}.x_after_step", video(torch.stack(after)), TRAJECTORY)
    case.close(f"{name}.sample_reimposed", video(into(last, frames, known)), TRAJECTORY)


@pytest.mark.parametrize("folder", folders("ramvid"))
def test_ramvid_agrees_with_the_official_code(folder, monkeypatch):
    case = Case(folder)
    system = build(case)
    assert sum(p.numel() for p in system.network.parameters()) == case.config["num_parameters"]
    check_schedule(case, system)
    check_forward(case, system)
    with monkeypatch.context() as patch:
        check_gradients(case, system, check_losses(case, system), patch)
    for s in case.config["sampling"]:
        check_trajectory(case, system, s, monkeypatch)
    print({name: f"{value:.1e}" for name, value in sorted(case.errors.items())})
    case.finish()


@pytest.mark.parametrize("folder", folders("ramvid-shapes"))
def test_published_networks_have_the_official_names_and_shapes(folder):
    lists = sorted(folder.glob("*.json"))
    assert lists
    for path in lists:
        content = json.loads(path.read_text())
        state = {name: torch.empty(shape, device="meta") for name, shape in content["state_dict"].items()}
        config = weights.infer(state, base=RaMViDConfig(), where=path.name)
        channels = state["input_blocks.0.0.weight"].shape[1]
        weights.verify(state, config, channels=channels, where=path.name)
        assert sum(t.numel() for t in state.values()) == content["num_parameters"]
        assert len(state) == content["num_tensors"]


@pytest.mark.parametrize("folder", folders("ramvid"))
@pytest.mark.parametrize("container", ["plain", "parallel", "wrapped"])
def test_official_files_load_and_compute_the_same(folder, container, tmp_path):
    case = Case(folder)
    content = {name: torch.nn.Parameter(tensor) for name, tensor in case.weights.items()}
    if container == "parallel":
        content = {f"module.{name}": tensor for name, tensor in content.items()}
    elif container == "wrapped":
        content = {"state_dict": content, "step": 7}
    torch.save(content, tmp_path / "ema_0.9999_000007.pt")

    told = {name: getattr(RaMViDConfig(), name) for name in ("width", "multipliers", "res_blocks", "attention")}
    told |= {"scale_shift": True, "learned_variance": False, "classes": 0}  # what the file must tell by itself
    experiment = RaMViDExperiment(
        data=DataConfig(channels=case.config["channels"]), model=replace(settings_of(case.config), **told)
    )
    read = weights.read_checkpoint(tmp_path / "ema_0.9999_000007.pt", experiment=experiment)
    assert read.config == settings_of(case.config) and (read.step, read.weights) == (8, "ema")
    network = UNet3D(read.config, channels=case.config["channels"]).eval()
    network.load_state_dict(read.parts["diffusion"])
    with torch.no_grad():
        output = network(video(case["forward.x"]), case["forward.t_model"], labels_of(case, "forward"))
    assert error(video(output), case["forward.output"]) <= FORWARD
