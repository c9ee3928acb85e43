"""PVDM's autoencoder and discriminators against tensors computed with the official code.

Its axes are B, C, T, H, W; decoded frames are (B T), C, H, W. All that a folder holds is compared.
"""

import json
import re

import pytest
import torch
from einops import rearrange

from framecast.systems.pvdm.adversary import Discriminator, chosen_frames, deception, feature_matching, hinge
from framecast.systems.pvdm.autoencoder import Autoencoder
from framecast.systems.pvdm.config import AutoencoderConfig
from framecast.systems.pvdm.transformer import space_angles, time_angles
from framecast.systems.pvdm.weights_autoencoder import (
    autoencoder_weights,
    discriminator_weights,
    infer_autoencoder,
    official_tables,
)
from tests.parity.walk import FORWARD, GRADIENT, Case, folders, video

PUBLISHED = {"autoencoder": 62_064_399, "discriminator_2d": 2_766_529, "discriminator_3d": 11_057_857}


class Told(Case):
    """A folder whose README gives shapes beside names, and tolerances in words, which win where they are looser."""

    def __init__(self, folder):
        super().__init__(folder)
        self.readme = (folder / "README.md").read_text()
        self.described |= set(re.findall(r"^\| (\S+) \| \([\d, ]*\) \|", self.readme, flags=re.MULTILINE))

    def stated(self, pattern: str) -> float:
        found = re.search(pattern, self.readme)
        return float(found[1]) if found else 0.0

    def within(self, name, ours, limit, *, absolute=0.0, relative=0.0):
        """Compare; `absolute` is a difference in units of the tensor."""
        most = self.tensors[name].abs().max().item() or 1.0
        self.close(name, ours.reshape(self.tensors[name].shape), max(limit, absolute / most, relative))


def autoencoder(case: Case) -> Autoencoder:
    """The network of the folder's settings, and nothing else than its weights."""
    c, over = case.config, case.config.get("override", {})
    base = AutoencoderConfig(plane_heads=over.get("proj_heads", 4))
    config, channels, size, frames = infer_autoencoder(case.weights, base=base, where="weights")
    told = {
        "width": c["channels"],
        "latent_channels": c["embed_dim"],
        "patch": c["patch_size"],
        "depth": over.get("depth", 8),
        "heads": over.get("heads", 8),
        "head_width": over.get("dim_head", 64),
        "expansion": over.get("ff_mult", 4),
        "plane_depth": over.get("proj_depth", 4),
        "plane_heads": over.get("proj_heads", 4),
        "plane_head_width": over.get("proj_dim_head", c["channels"] // 8),
        "plane_hidden": over.get("proj_mlp_dim", 512),
    }
    assert config == AutoencoderConfig(**told)
    assert (channels, size) == (c["channels_in"], (c["resolution"], c["resolution"]))
    assert frames == c["timesteps"] // c["splits"]
    network = Autoencoder(config, channels=channels, size=size, frames=frames).eval()
    network.load_state_dict(autoencoder_weights(case.weights, network, where="weights"))
    return network


def by_time_and_place(tokens, rows):
    """Our (T, B N, D) as theirs, (B, T N, D)."""
    return rearrange(tokens, "t (b n) d -> b (t n) d", b=rows)


@pytest.mark.parametrize("folder", folders("pvdm-ae"))
@torch.no_grad()
def test_autoencoder_agrees_in_every_tensor(folder):
    case = Told(folder)
    network = autoencoder(case)
    seen = {}
    for name in ("embed", "encoder", "decoder"):
        part = network.get_submodule(name)
        part.register_forward_hook(lambda _, given, made, name=name: seen.update({name: (given[0], made)}))
    clip = video(case["clip"])
    rows, frames = clip.shape[:2]
    planes = network.encode(clip)
    decoded = network.decode(planes)

    ours = {"latent_flat": planes.flat(), "reconstruction": decoded.flatten(0, 1)}
    ours |= {f"plane_{name}": getattr(planes, name) for name in ("xy", "yt", "xt")}
    for name, index in (("patch_tokens_in", 0), ("patch_tokens_out", 1)):
        found = by_time_and_place(seen["embed"][index], rows)
        ours[name] = found[:, : case.tensors[name].shape[1]] if name in case else found
    ours["encoder_tokens"] = by_time_and_place(seen["encoder"][1], rows)
    grid = {"b": rows, "h": network.grid[0]}
    ours["grid_3d"] = rearrange(seen["decoder"][0], "t (b h w) d -> b d t h w", **grid)
    ours["decoder_tokens"] = by_time_and_place(seen["decoder"][1], rows)
    tables = {"time": time_angles(frames, network.config.head_width)}
    tables["space"] = space_angles(network.grid, network.config.head_width)
    for name, angles in tables.items():
        ours |= {f"rope_{name}_sin": angles.sin()[None], f"rope_{name}_cos": angles.cos()[None]}
    if "sample_latent" in case:
        ours["sample_decoded"] = network.decode(network.split(case["sample_latent"])).flatten(0, 1)

    allowed = case.stated(r"tolerance: max abs error ([\d.e-]+\d)")
    for name in set(ours) & set(case.tensors):
        case.within(name, ours[name], FORWARD, absolute=allowed)
    # planes are the segments of the flat latent, and views of it
    again = network.split(planes.flat())
    assert all(torch.equal(getattr(again, name), getattr(planes, name)) for name in ("xy", "yt", "xt"))
    case.finish()


def pair(case: Case) -> dict[str, Discriminator]:
    """Both discriminators with the folder's weights and statistics."""
    c = case.config
    sizes = {"channels": c["disc_in_channels"], "width": c["disc_ndf"], "halvings": c["disc_num_layers"]}
    networks = {f"discriminator_{dims}d": Discriminator(dims=dims, **sizes) for dims in (2, 3)}
    for name, state in discriminator_weights(case.weights, networks, where="weights").items():
        networks[name].load_state_dict(state)
    return {name.replace("discriminator_", "d").removesuffix("d"): network for name, network in networks.items()}


def outputs(case, networks, *clips):
    """Stage by stage: of both networks on every clip, real before fake, as the folder's statistics remember it."""
    index = case["frame_index"]
    views = [{"d2": chosen_frames(clip, index), "d3": clip} for clip in clips]
    return [{name: networks[name](view[name]) for name in networks} for view in views]


@pytest.mark.parametrize("folder", folders("pvdm-gan"))
def test_discriminators_and_losses_agree_in_every_tensor(folder):
    case = Told(folder)
    c, ours = case.config, {}
    loss, other = (case.stated(rf"([\d.e-]+\d) \({word}") for word in ("losses", "features"))
    real, fake = video(case["clip"]), video(case["recon"])

    for part, network in pair(case).items():  # stored statistics
        view = chosen_frames(real, case["frame_index"]) if part == "d2" else real
        with torch.no_grad():
            ours[f"eval.{part}_logits_real"] = network.eval()(view)[-1]

    recon = fake.clone().requires_grad_()
    of_real, of_fake = outputs(case, pair(case), real, recon)
    for part in of_real:
        ours |= {f"{part}.logits_real": of_real[part][-1], f"{part}.logits_fake": of_fake[part][-1]}
        for kind, found in (("real", of_real[part]), ("fake", of_fake[part])):
            ours |= {f"{part}.feat_{kind}_{k}": x for k, x in enumerate(found[:-1])}
    pixel = c["pixelloss_weight"] * (recon - real).abs().mean()
    adversarial = c["disc_weight"] * sum(deception(of_fake[part][-1]) for part in of_fake)
    matching = c["feature_weight"] * sum(feature_matching(of_real[part], of_fake[part]) for part in of_fake)
    total = pixel + adversarial + matching
    ours |= {"gen.pixel": pixel, "gen.adv": adversarial, "gen.feature_matching": matching, "gen.loss_total": total}
    ours["gen.loss_total_before_start"] = pixel
    total.backward()
    ours["gen.grad_recon"] = video(recon.grad)

    networks = pair(case)
    of_real, of_fake = outputs(case, networks, real, fake)
    total = sum(hinge(of_real[part][-1], of_fake[part][-1]) for part in networks)
    total.backward()
    ours["disc.loss_total"] = total
    for part, network in networks.items():
        dims = part[1]
        ours[f"disc.grad_norm_{dims}d"] = torch.nn.utils.clip_grad_norm_(network.parameters(), c["grad_clip_norm"])
        ours[f"disc.grad_{dims}d_first_clipped"] = network.stages[0][0].weight.grad
        for k, stage in enumerate(network.stages):
            norms = [layer for layer in stage if hasattr(layer, "running_mean")]
            ours |= {f"disc.bn_running_mean_{dims}d_model{k}": norm.running_mean for norm in norms}
            ours |= {f"disc.bn_running_var_{dims}d_model{k}": norm.running_var for norm in norms}

    for name in set(ours) & set(case.tensors):
        scalar = case.tensors[name].numel() == 1
        limit = GRADIENT if ".grad" in name else FORWARD
        case.within(name, ours[name], limit, absolute=loss if scalar else 0.0, relative=0.0 if scalar else other)
    case.finish()


@pytest.mark.parametrize("folder", folders("pvdm-shapes"))
def test_published_networks_have_the_official_names_shapes_and_counts(folder):
    def state(name):
        shapes = json.loads((folder / f"{name}.json").read_text())
        return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}

    official = state("autoencoder")
    read = infer_autoencoder(official, base=AutoencoderConfig(), where="autoencoder.json")
    assert read == (AutoencoderConfig(), 3, (256, 256), 16)
    with torch.device("meta"):
        network = Autoencoder(read[0], channels=3, size=(256, 256), frames=16)
        networks = {f"discriminator_{dims}d": Discriminator(channels=3, dims=dims) for dims in (2, 3)}
    official |= official_tables(read[0])  # the only values that are looked at
    assert autoencoder_weights(official, network, where="").keys() == network.state_dict().keys()
    discriminator_weights(state("discriminators"), networks, where="discriminators.json")
    built = {"autoencoder": network, **networks}
    assert {name: sum(p.numel() for p in one.parameters()) for name, one in built.items()} == PUBLISHED
