"""What judging commands and RVD may be given by mistake, and what they must say: tables for `test_bad_input.py`.

Wrong weight files, sets that are other sets, samples that do not fit, broken results; beside them the whole ones.
"""

import json
import shutil
import warnings

import numpy as np
import torch

from framecast.checkpoint import PartInfo, build_system, save_model
from framecast.data.array_file import write_array
from framecast.data.video_file import write_video
from framecast.experiment import VideoSpec, to_plain, to_yaml
from framecast.metrics.c3d import C3D
from framecast.metrics.i3d import I3D
from framecast.nn.perceptual import LPIPS
from tests.evaluate.flows import write_flows
from tests.evaluate.results import write_result
from tests.tiny import rvd

BY = {"by": "test"}
BARE = ["shown", "by_frame", "sets", "ranks", "spread_skill", "simple"]


# ---- weights


def weights_of(network, prefix=""):
    """All tensors of a network built on the meta device; a file of them is small, for each stores one number only."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict(prefix=prefix).items()}
    return {name: torch.ones((), device="cpu").expand(shape) for name, shape in shapes.items()}


def spoil_networks(at):
    (at / "void.pt").touch()
    (at / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 50\n")
    with torch.device("meta"):
        i3d, c3d = weights_of(I3D(eps=1e-5)), weights_of(C3D())
        backbones = {net: weights_of(LPIPS(net).features, prefix="features.") for net in ("alex", "vgg")}
        classes = weights_of(I3D(eps=1e-5, classes=600))
    torch.save(classes, at / "i3d-600.pt")
    for net, state in backbones.items():
        torch.save(state, at / f"{net}.pt")
    half = {name: tensor / 2 if name.endswith("bn.weight") else tensor for name, tensor in i3d.items()}
    torch.save({**half, "Conv3d_1a_7x7.conv3d.weight": torch.ones(()).expand(64, 2, 7, 7, 7)}, at / "i3d-flow.pt")
    torch.save(half, at / "i3d-untold.pt")
    torch.save({**i3d, "logits.conv3d.bias": torch.full((400,), torch.nan)}, at / "i3d-nan.pt")
    torch.save({name: tensor for name, tensor in i3d.items() if "Mixed_4d" not in name}, at / "i3d-gap.pt")
    torch.save(c3d, at / "c3d.pt")
    np.savez(at / "no-mean.npz", other=np.zeros(3, np.float32))
    np.savez(at / "flat-mean.npz", mean=np.zeros((3, 16, 8, 8), np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # archives are still about
        torch.jit.script(torch.nn.ReLU()).save(str(at / "relu.pt"))


# ---- sets


def spoil_sets(at):
    write_flows(at / "flows")
    for name, told in (("flows-other", {"set_name": "vortex64"}), ("flows-seed", {"seed": 1}), ("flows-short", {})):
        write_flows(at / name, flows=1, frames=20, **told)
    write_flows(at / "flows-torn", flows=1)
    torn = at / "flows-torn" / "test" / "flow_0000.npz"
    torn.write_bytes(torn.read_bytes()[:500])
    for name in ("flows-other", "flows-seed", "flows-short", "flows-torn"):  # all the others are as they should be
        for number in range(1, 32):
            (at / name / "test" / f"flow_{number:04d}.npz").symlink_to(at / "flows" / "test" / f"flow_{number:04d}.npz")
    write_flows(at / "flows-few", flows=2, frames=20)
    shutil.copytree(at / "flows-few" / "train", at / "flows-train" / "train")


# ---- samples


def spoil_samples(at):
    """Folders of samples of the first two windows of smoke-lbm on `flows`: 32 × 32, 16 frames, from -1 to 1."""
    good = torch.zeros(2, 2, 16, 1, 32, 32)  # windows, samples, …
    spoiled = {
        "kept": good,
        "kept-one": good[:1],
        "kept-nan": torch.where(torch.arange(2).reshape(2, 1, 1, 1, 1, 1) == 1, torch.nan, good),
        "kept-small": good[..., :16, :16],
        "kept-long": good.repeat(1, 1, 2, 1, 1, 1),
        "kept-bytes": good.to(torch.uint8),
    }
    for name, windows in spoiled.items():
        for number, samples in enumerate(windows):
            span = None if samples.dtype == torch.uint8 else (-1.0, 1.0)
            write_array(at / name / f"{number}.npz", samples, fps=None, value_range=span, generated_by=BY)
    shutil.copytree(at / "kept", at / "kept-torn")
    torn = at / "kept-torn" / "1.npz"
    torn.write_bytes(torn.read_bytes()[:100])
    (at / "kept-videos").mkdir()
    for number in range(2):
        write_video(
            at / "kept-videos" / f"{number}.mp4", torch.zeros(16, 1, 32, 32, dtype=torch.uint8), 10.0, comment="x"
        )
    np.save(at / "all.npy", good[:, 0].numpy())
    np.save(at / "all-few.npy", good[:1, 0].numpy())
    shutil.copytree(at / "kept", at / "judged" / "samples" / "4-12")  # by an evaluation, of other windows
    (at / "judged" / "samples" / "samples.json").write_text('{"model": {"name": "other"}}')


# ---- results


def spoil_results(at):
    write_result(at / "result", leave_out=BARE)
    write_result(at / "result-again", seed=1, leave_out=BARE)
    write_result(at / "result-bounce", model="other", settings={"name": "smoke-bounce"}, leave_out=BARE)
    write_result(at / "result-seed", model="other", settings={"seed": 1}, leave_out=BARE)
    write_result(at / "result-data", model="other", data_seed=1, leave_out=BARE)
    write_result(at / "result-partial", model="other", deviations=["2 samples instead of 4"], leave_out=BARE)

    def edited(name, edit):
        shutil.copytree(at / "result", at / name)
        told = json.loads((at / name / "result.json").read_text())
        edit(told)
        (at / name / "result.json").write_text(json.dumps(told))

    edited("result-listed", lambda told: told.update(cases=[3]))
    edited("result-modelled", lambda told: told.update(model="vortex"))
    edited("result-worded", lambda told: told.update(format_version="two"))
    edited("result-scored", lambda told: told["cases"][0]["forecasts"][0].update(scores=[1.0]))
    for name in ("result-headless", "result-halved", "result-short"):
        shutil.copytree(at / "result", at / name)
    table = (at / "result" / "windows.csv").read_bytes()
    (at / "result-headless" / "windows.csv").write_text("case,forecast\n2 → 4,vortex-ramvid\n", encoding="utf-8")
    (at / "result-halved" / "windows.csv").write_bytes(table[: len(table) * 2 // 3 - 3])
    (at / "result-short" / "windows.csv").write_bytes(b"".join(table.splitlines(keepends=True)[:-1]))
    edited("result-old", lambda told: told.update(format_version=1))
    edited("result-newer", lambda told: told.update(format_version=99))
    edited("result-caseless", lambda told: told.update(cases=[]))
    edited("result-dataless", lambda told: told.pop("data"))
    edited("result-nameless", lambda told: told.pop("protocol"))
    for name in ("result-torn", "result-empty", "result-numbered", "result-latin"):
        shutil.copytree(at / "result", at / name)
    whole = (at / "result" / "result.json").read_bytes()
    (at / "result-torn" / "result.json").write_bytes(whole[: len(whole) // 2])
    (at / "result-empty" / "result.json").write_bytes(b"")
    (at / "result-numbered" / "result.json").write_text("7")
    (at / "result-latin" / "result.json").write_bytes(whole.replace(b"vortex-ramvid", b"caf\xe9"))


# ---- the table: what is typed, the exit code, what the sentence must say (a pattern)

NETWORKS = [
    ("--i3d page.pt", 1, r"page\.pt is a web page, not the weights of I3D"),
    ("--i3d void.pt", 1, r"void\.pt is empty: download the weights of I3D"),
    ("--i3d pointer.pt", 1, r"pointer\.pt only points to the weights of I3D .+git lfs pull"),
    ("--i3d cut.pt", 1, r"cut\.pt is damaged or cut short"),
    ("--i3d objects.pt", 1, r"objects\.pt holds objects other than tensors.+refused"),
    ("--i3d opt.pt", 1, r"opt\.pt does not hold tensors by name"),
    ("--i3d notes.txt", 1, r"notes\.txt is not a file of weights of I3D"),
    ("--i3d tiny", 1, r"tiny is a folder, not a file"),
    ("--i3d missing.pt", 1, r"missing\.pt is not there; give the file of weights of I3D"),
    ("--i3d alex.pt", 1, r"alex\.pt holds features\.0\.weight and the like: these are not the weights of I3D"),
    ("--i3d c3d.pt", 1, r"c3d\.pt holds conv1a\.W and the like: these are not the weights of I3D"),
    ("--i3d i3d-600.pt", 1, r"i3d-600\.pt tells 600 classes apart, as of Kinetics-600"),
    ("--i3d i3d-flow.pt", 1, r"i3d-flow\.pt is the network for optical flow \(2 channels\)"),
    ("--i3d i3d-gap.pt", 1, r"i3d-gap\.pt has no tensor Mixed_4d\.b0\.conv3d\.weight"),
    ("--i3d i3d-nan.pt", 1, r"i3d-nan\.pt: logits\.conv3d\.bias holds values that are not numbers"),
    ("--i3d i3d-untold.pt", 1, r"does not tell which batch-norm epsilon .+give --i3d-eps 1e-5 .+ or --i3d-eps 1e-3"),
    ("--i3d i3d-untold.pt --i3d-eps 5", 1, r"eps is 5; batch norms of I3D have 1e-3 or 1e-5"),
    ("--i3d i3d-untold.pt --i3d-eps x", 2, r"--i3d-eps: .+'x'"),
    ("--i3d relu.pt", 1, r"relu\.pt is a TorchScript archive of another network"),
    ("--i3d relu.pt --i3d-eps 1e-3", 1, r"relu\.pt is a TorchScript archive, .+leave --i3d-eps out"),
    ("--i3d-eps 1e-3", 2, r"--i3d-eps goes with --i3d FILE"),
    ("--c3d page.pt", 1, r"page\.pt is a web page, not the weights of C3D"),
    ("--c3d void.pt", 1, r"void\.pt is empty: download the weights of C3D"),
    ("--c3d alex.pt", 1, r"alex\.pt has no tensor conv1a/W.+it is a file of another network"),
    ("--c3d c3d.pt", 1, r"c3d\.pt needs the mean clip .+ mean2\.npz too \(--c3d-mean FILE\)"),
    (
        "--c3d relu.pt",
        1,
        r"relu\.pt is a TorchScript archive of another network: C3D .+answers with \(1, 3, 16, 32, 32\)",
    ),
    ("--c3d c3d.pt --c3d-mean page.pt", 1, r"page\.pt is a web page"),
    ("--c3d c3d.pt --c3d-mean no-mean.npz", 1, r"no-mean\.npz has no array mean"),
    ("--c3d c3d.pt --c3d-mean flat-mean.npz", 1, r"mean has shape \(3, 16, 8, 8\), expected 3 × 16 × 128 × 128"),
    ("--c3d relu.pt --c3d-mean no-mean.npz", 1, r"has its own mean clip: leave no-mean\.npz out"),
    ("--c3d-mean no-mean.npz", 2, r"--c3d-mean goes with --c3d FILE"),
    ("--lpips page.pt", 1, r"page\.pt is a web page, not the weights of AlexNet"),
    ("--lpips void.pt", 1, r"void\.pt is empty: download the weights of AlexNet"),
    ("--lpips other.pt", 1, r"other\.pt does not hold torchvision's AlexNet: features\.0\.weight is missing"),
    ("--lpips vgg.pt", 1, r"vgg\.pt holds VGG-16, and the protocol, .+ give AlexNet's file, such as alexnet-owt"),
    ("--lpips i3d-untold.pt", 1, r"i3d-untold\.pt does not hold torchvision's AlexNet"),
    ("--lpips relu.pt", 1, r"relu\.pt is a TorchScript archive; LPIPS takes the tensors by name"),
]

STORED = [  # samples in place of a model
    (
        "kept --data flows",
        1,
        r"kept holds 2 files, the protocol asks for 128 windows: .+judge the first with --windows 2",
    ),
    ("kept --data flows --windows 999", 1, r"kept holds 2 files, the protocol asks for 128 windows"),
    ("kept-one --data flows --windows 2", 1, r"kept-one holds 1 .+the protocol asks for 2 windows"),
    ("kept-nan --data flows --windows 2", 1, r"kept-nan/1\.npz holds values that are not numbers"),
    ("kept-small --data flows --windows 2", 1, r"kept-small/0\.npz: .+\(2, 16, 1, 16, 16\), a window is 16 frames of"),
    ("kept-long --data flows --windows 2", 1, r"kept-long/0\.npz: samples of shape \(2, 32, .+12 of them unknown"),
    (
        "all.npy --data flows --windows 2",
        1,
        r"all\.npy, clip 0: float32 values of unknown range: .+--value-range LOW,HIGH",
    ),
    ("kept-torn --data flows --windows 2", 1, r"kept-torn/1\.npz is not a readable array"),
    ("kept-videos --data flows --windows 2", 1, r"kept-videos/0\.mp4 is a video, .+store .+ as \.npz, or .+ --lossy"),
    ("all-few.npy --data flows --windows 2", 1, r"all-few\.npy holds 1 .+the protocol asks for 2 windows"),
    (
        "set.npy --data flows --windows 2 --value-range -1,1",
        1,
        r"set\.npy, clip 0: samples of shape \(1, 12, 1, 8, 8\), a window is 16",
    ),
    ("stored.npy --data flows", 1, r"stored\.npy: the array has shape \(12, 1, 8, 8\), expected all clips as \(N, T"),
    ("cut.npy --data flows", 1, r"cut\.npy is not a readable array"),
    ("objects.npy --data flows", 1, r"objects\.npy is not a readable array"),
    ("rgb.mp4 --data flows", 1, r"rgb\.mp4 is a file; a model is a folder"),
    ("bare --data flows", 1, r"bare is neither a model folder"),
    ("mine --data flows", 1, r"mine is neither a model folder"),
    ("clips --data flows --windows 2", 1, r"clips holds 4 files for 2 windows: .+store one per window"),
    ("judged/samples --data flows --windows 2", 1, r"judged/samples holds no samples of the protocol.s windows"),
    ("kept --data flows --protocol infill-lbm", 1, r"kept has no folder known-0-15-of-16: the protocol has 3 cases"),
    ("kept --data flows --windows 2 --out kept", 1, r"kept is not empty, and nothing .+ overwritten: use --out kept-2"),
    ("kept --data nowhere", 1, r"nowhere/test holds no clips of vortex32; make it: framecast data simulate vortex32"),
]

JUDGED = [  # sets, places and words of evaluate
    ("persistence --data nowhere", 1, r"nowhere/test holds no clips of vortex32; make it: framecast data simulate"),
    ("persistence --data clip.npz", 1, r"clip\.npz/test holds no clips of vortex32"),
    ("persistence --data clips", 1, r"clips/test holds no clips of vortex32"),
    ("persistence --data flows-few", 1, r"flows-few holds 2 of the 32 test flows; make it"),
    ("persistence --data flows-other", 1, r"flow_0000\.npz is not a test flow of vortex32 with seed 0; make it"),
    ("persistence --data flows-seed", 1, r"flow_0000\.npz is not a test flow of vortex32 with seed 0; make it"),
    ("persistence --data flows-short", 1, r"flow_0000\.npz has 20 frames, too few for 4 windows of 16 frames"),
    ("persistence --data flows-torn", 1, r"flow_0000\.npz: .+; make it: framecast data simulate vortex32 flows-torn"),
    ("persistence --data flows --protocol smoke-bounce", 1, r"flows holds 32 of the 256 test clips; make it"),
    ("persistence --data nowhere --protocol rvd-kth", 1, r"nowhere does not exist; .+the clips of kth in nowhere/val"),
    ("persistence --data notes.txt --protocol rvd-kth", 1, r"notes\.txt is no folder; rvd-kth needs the clips of kth"),
    ("persistence --data bare --protocol rvd-kth", 1, r"bare holds no clips"),
    (
        "persistence --data flows-train --protocol rvd-kth",
        1,
        r"has folders train and none named val.+name the right one",
    ),
    ("persistence --data clips --protocol rvd-kth", 1, r"no clip in clips .+ 4 of 4 clips have under 16 frames behind"),
    ("persistence --data broken --protocol rvd-kth", 1, r"3 of 3 clips cannot be read, .+the first: broken/a\.mp4"),
    ("persistence --data flows --windows 0", 2, r"--windows: '0' is not a whole number above 0"),
    ("persistence --data flows --samples 0", 2, r"--samples: '0' is not a whole number above 0"),
    (
        "persistence --data flows --out mine",
        1,
        r"mine is not empty, and nothing in it is overwritten: use --out mine-2",
    ),
    ("persistence --data flows --out notes.txt/sub", 1, r"notes\.txt is a file, and is not overwritten"),
    ("persistence --data flows --steps 3", 2, r"draws nothing: leave --steps and --sampler out"),
    ("linear-blend --data flows", 1, r"linear-blend fills gaps .+Simple forecasts that can: persistence"),
    (
        "analog --data flows --windows 1 --sample.reference nowhere",
        1,
        r"nowhere does not exist; give a folder that holds clips",
    ),
    (
        "tiny --data flows --windows 1 --out judged",
        1,
        r"judged/samples holds samples of another evaluation .+choose another --out",
    ),
    ("tiny --data flows --steps 51", 1, r"51 steps among 50 of the 50 noise levels"),
    ("tiny --data flows --device cuda", 1, r"device cuda"),
    ("page.pt --data flows", 1, r"page\.pt is a checkpoint of another program; convert it"),
    ("no-part --data flows", 1, r"no-part/diffusion\.safetensors is missing"),
    ("tinny --data flows", 1, r"no model 'tinny'.+Did you mean tiny\?"),
    ("", 2, r"name a MODEL, or list the protocols with --protocol list"),
]

RESULTS = [
    ("nowhere", r"nowhere (holds no result\.json|is neither a result)"),
    ("bare", r"bare (holds no result\.json|is neither a result)"),
    ("notes.txt", r"notes\.txt is (not JSON|neither a result)"),
    ("clip.npz", r"clip\.npz is (not JSON|neither a result)"),
    ("judged/samples/samples.json", r"samples\.json has no protocol, so it is not the result of an evaluation"),
    ("result-old", r"result-old/result\.json is of format 1, .+reads format 2: run framecast evaluate again"),
    ("result-newer", r"result-newer/result\.json is of format 99, .+it needs a newer framecast"),
    ("result-caseless", r"result-caseless/result\.json lacks forecasts: run framecast evaluate again"),
    ("result-dataless", r"result-dataless/result\.json lacks data: run framecast evaluate again"),
    ("result-nameless", r"result-nameless/result\.json has no protocol"),
    ("result-torn", r"result-torn/result\.json is not JSON"),
    ("result-empty", r"result-empty/result\.json is not JSON"),
    ("result-numbered", r"result-numbered/result\.json has no protocol"),
    ("result-latin", r"result-latin/result\.json is not JSON"),
    ("result-listed", r"result-listed/result\.json: cases\[0\] is 3, expected names with values: run framecast eval"),
    ("result-modelled", r"result-modelled/result\.json: model is 'vortex', expected names with values"),
    ("result-worded", r"result-worded/result\.json: format_version is 'two', expected a whole number"),
    ("result-scored", r"result-scored/result\.json: cases\[0\]\.forecasts\[0\]\.scores is \[1\.0\], expected names"),
]

WINDOWS = [  # results whose windows.csv is not what was written; only what pairs windows looks at it
    (
        "result-headless",
        r"result-headless/windows\.csv has no column window and no column unit: run framecast evaluate",
    ),
    ("result-halved", r"result-halved/windows\.csv is cut short or damaged in line 5: run framecast evaluate again"),
    ("result-short", r"result-short/windows\.csv does not fit .+ vortex-ramvid \(2 → 4\): 5 here, 6 there"),
]

TOLD = [  # compare, report, score, samplers
    ("compare", 2, r"required: RESULT"),
    ("compare result", 2, r"compare needs at least two results"),
    ("compare result result-bounce", 1, r"vortex-ramvid was judged by smoke-lbm, other by smoke-bounce"),
    ("compare result result-seed", 1, r"cannot compare: vortex-ramvid used seed 0, other 1"),
    ("compare result result-data", 1, r"vortex-ramvid was judged on other frames than other"),
    ("compare result result-partial", 1, r"other deviates from the protocol \(2 samples instead of 4\), vortex-ramvid"),
    ("compare result result-again --out mine", 1, r"mine is not empty, and nothing in it is overwritten"),
    ("compare result result-again --out notes.txt", 1, r"notes\.txt is a file, and is not overwritten"),
    ("report", 2, r"required: RUN\|RESULT"),
    ("report tiny", 1, r"tiny is neither a result .+ nor a training run"),
    ("report flows", 1, r"flows is neither a result .+ nor a training run"),
    ("report result nowhere", 1, r"nowhere is neither a result"),
    ("report result --out page.pdf", 1, r"page\.pdf: a report is a web page; name it \.html"),
    ("report result --out result/result.json", 1, r"name it \.html: --out result/result\.html\."),
    ("report result --out mine", 1, r"mine is a folder: name the page in it, --out mine/report-result\.html\."),
    ("report result --out notes.txt", 1, r"notes\.txt: a report is a web page; name it \.html: --out notes\.html\."),
    ("report result --out notes.txt/page.html", 1, r"notes\.txt is a file, and no page .+: use --out page\.html\."),
    ("score tiny clip.npz missing.npz --levels 2", 1, r"missing\.npz: there is no such file"),
    ("score tiny clip.npz one.npy --levels 2 --context 1", 1, r"one\.npy: context is 1, the clip has 1 frame: leave"),
    ("score tiny one.npy --context 1", 1, r"context is 1, the clip has 1 .+leave at least one to score"),
    ("score tiny clip.npz --context 12", 1, r"context is 12, the clip has 12 frames: leave at least one to score"),
    ("score tiny clip.npz --context -1", 2, r"--context: '-1' is not a number of frames, from 0 on"),
    ("score tiny clip.npz --levels most", 2, r"--levels: 'most' is not a whole number above 0"),
    ("score tiny clip.npz --levels 0", 2, r"--levels: '0' is not a whole number above 0"),
    ("score tiny clip.npz --levels -1", 2, r"--levels: '-1' is not a whole number above 0"),
    ("score tiny clip.npz --levels 51", 1, r"levels is 51, but tiny scores by at most 50 noise levels: ask for fewer"),
    ("score tiny nothing.npy", 1, r"nothing\.npy: the array is empty"),
    ("score tiny nan.npy --value-range 0,1", 1, r"nan\.npy: frame 0 holds values that are not numbers"),
    ("score tiny rgb.mp4", 1, r"rgb\.mp4: model expects 1 channel, clip has 3: add --gray"),
    ("score tiny clip.npz --out mine", 1, r"mine is not empty, and nothing in it is overwritten"),
    ("samplers persistence --data flows", 1, r"persistence has no sampler"),
    ("samplers tiny --data flows-few", 1, r"flows-few holds 2 of the 32 test flows"),
    ("samplers tiny --data flows --protocol generate-lbm", 1, r"generate-lbm has no windows to compare with"),
]

SEEN = [(f"evaluate persistence --data flows {words}", code, said) for words, code, said in NETWORKS]
EVALUATED = [(f"evaluate {words}".strip(), code, said) for words, code, said in [*STORED, *JUDGED]]
READ = [(f"{command} {words}", 1, said) for words, said in RESULTS for command in ("compare result", "report")]
READ += [(f"{command} result {words}", 1, said) for words, said in WINDOWS for command in ("compare", "report")]
JUDGING = [*SEEN, *EVALUATED, *READ, *TOLD]


# ---- RVD


def spoil_rvd(at):
    experiment = rvd()
    (at / "rvd.yaml").write_text(to_yaml(experiment))
    video = VideoSpec(channels=1, height=8, width=8, clip_frames=5, fps=10.0)
    system = build_system("rvd", to_plain(experiment.model), video, to_plain(experiment.sample))
    parts = {name: PartInfo(stage="forecast", step=7) for name in system.parts()}
    save_model(at / "rvd", system, parts=parts, provenance={})
    for name, change in (("whole", {}), ("wide", {"transform_multipliers": [1, 3]}), ("sigma", {"sigma": 0.0})):
        folder = shutil.copytree(at / "rvd", at / f"rvd-{name}")
        config = json.loads((folder / "config.json").read_text())
        config["model"].update(change)
        (folder / "config.json").write_text(json.dumps(config))
    (at / "rvd-whole" / "transform.safetensors").unlink()
    (at / "rvd-whole").rename(at / "rvd-gap")


ASKED = [  # of a model that draws every frame from the ones before it
    (
        "infill rvd clip.npz --known 0,5",
        1,
        r"must come first: frame 5 is known, frame 1 is not\. Systems that infill: ram",
    ),
    ("infill rvd clip.npz --known 3", 1, r"frame 3 is known, frame 0 is not\. Systems that infill: ramvid"),
    ("interpolate rvd clip.npz", 1, r"known frames must come first: .+ Systems that interpolate: ramvid"),
    ("generate rvd", 1, r"it needs at least 1 known frame\. Systems that generate: ramvid"),
    ("reconstruct rvd clip.npz", 1, r"rvd cannot reconstruct: it has no encoder and decoder"),
    ("score rvd clip.npz --levels 51", 1, r"levels is 51, but rvd scores by at most 50 noise levels"),
    ("score rvd one.npy", 1, r"one\.npy: context is 1, the clip has 1 frame: leave at least one to score"),
    ("predict rvd one.npy", 1, r"one\.npy: 1 frame, the context needs 4: give a longer clip or a smaller --context"),
    ("predict rvd clip.npz --sampler plms", 2, r"sample\.sampler is 'plms'; it can be ddpm, ddim, dpmpp_2m, mean"),
    ("predict rvd clip.npz --sample.bound -1", 1, r"bound is -1; it must be above 0, range .+ or null"),
    ("predict rvd clip.npz --sample.bound wide", 2, r"bound is 'wide', which is not range or a number or null"),
    ("predict rvd clip.npz --sample.window -2", 1, r"window is -2; it must be 0"),
    ("predict rvd clip.npz --sample.overlap 2", 2, r"sample\.overlap is not a setting"),
    ("predict rvd clip.npz --steps 51", 1, r"51 steps among 50 of the 50 noise levels; ask for at most 50"),
    ("predict rvd clip.npz --steps 51 --sampler dpmpp_2m", 1, r"steps is 51; it must lie between 1 and the 50"),
    ("predict rvd clip.npz --sampler ddim --sample.eta 3", 1, r"eta is 3; it must lie between 0"),
    ("predict rvd-gap clip.npz", 1, r"rvd-gap/transform\.safetensors is missing; copy or download"),
    (
        "predict rvd-wide clip.npz",
        1,
        r"rvd-wide/transform\.safetensors: weight \S+ has shape .+, the model settings ask",
    ),
    ("predict rvd-sigma clip.npz", 1, r"rvd-sigma/config\.json: sigma is 0; it must be above 0"),
]
TAUGHT = [
    ("--size 9", 1, r"frames are 9×9, but sides must be multiples of 2 for 2 levels; try 8×8"),
    ("--model.patch 3", 1, r"multiples of 6 for 2 levels and patches of 3; try 6×6"),
    ("--model.multipliers 2,4", 1, r"multipliers is \[2, 4\]; it must hold whole numbers from 1 on and begin with 1"),
    ("--model.transform_multipliers 1", 1, r"transform_multipliers is \[1\]; it needs at least 2 levels"),
    ("--model.width 10", 1, r"width is 10, which is no multiple of groups, 4"),
    ("--model.sigma 0", 1, r"sigma is 0; it must be above 0"),
    ("--model.prediction none --model.sigma 2", 1, r"without a prediction the residual is the frame: set it to 1"),
    ("--model.prediction previous --model.residual none", 1, r"nothing is left to learn: set one of them"),
    ("--model.prediction past", 2, r"model\.prediction is 'past'; it can be network, previous, none"),
    ("--model.prediction none --sample.sampler mean", 1, r"this one expects nothing: take ddim"),
    ("--stages.forecast.context 5", 1, r"context is 5; it must be at least 1 and below clip_frames, which is 5"),
    ("--stages.forecast.loss l3", 2, r"stages\.forecast\.loss is 'l3'; it can be l1, l2"),
    ("--stage diffusion", 1, r"rvd has no stage 'diffusion'\. Its stages: forecast"),
    ("--start-from rvd --model.width 16", 1, r"has shape .+, the model settings ask for"),
]
IMPORTED = [
    ("page.pt", 1, r"page\.pt is a web page, not a weight file"),
    ("cut.pt", 1, r"cut\.pt is damaged or cut short"),
    ("objects.pt", 1, r"objects\.pt holds objects other than tensors.+refused"),
    ("opt.pt", 1, r"opt\.pt is the state of an optimiser, not weights: give a resnet-\*\.pt file"),
    ("other.pt", 1, r"other\.pt has no tensor denoise_fn\.\S+: these are not the weights of an RVD model"),
    ("grey.pt", 1, r"grey\.pt has no tensor denoise_fn\.\S+: these are not the weights of an RVD model"),
]
FORECAST = [
    *ASKED,
    *((f"train rvd.yaml --data clips --device cpu {words}", code, said) for words, code, said in TAUGHT),
    *((f"models import {name} --preset rvd/bair64", code, said) for name, code, said in IMPORTED),
    ("train rvd/vortx32 --data clips", 1, r"'rvd/vortx32' is not a preset\. Did you mean rvd/vortex32\?"),
]
