"""Odd and broken input through the real command line: a right exit code, one sentence, and nothing touched.

Every case runs in one folder full of spoiled things, which must look the same afterwards, to the byte. What the
sentence has to say is in the table beside the command.
"""

import hashlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from framecast import forecast
from framecast.checkpoint import PartInfo, build_system, load_system, save_model
from framecast.cli.main import main
from framecast.data.array_file import write_array
from framecast.data.image_file import write_image
from framecast.data.video_file import write_video
from framecast.experiment import VideoSpec, to_plain, to_yaml
from framecast.train.run import run
from tests.spoiled import FORECAST, JUDGING, spoil_networks, spoil_results, spoil_rvd, spoil_samples, spoil_sets
from tests.tiny import change, ramvid, write_clips

BY = {"by": "test"}
STEP = "checkpoints/step_00000002"

# ---- the folder


def pixels(frames=12, channels=1, height=8, width=8):
    rng = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, channels, height, width), generator=rng, dtype=torch.uint8)


def spoil_videos(at):
    write_array(at / "clip.npz", pixels(), fps=10.0, value_range=None, generated_by=BY)
    write_video(at / "rgb.mp4", pixels(12, 3, 16, 16), 10.0, comment="x")
    whole = (at / "rgb.mp4").read_bytes()  # the list of frames stands in front of them
    (at / "torn.mp4").write_bytes(whole[:200])
    (at / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (at / "empty.mp4").touch()
    for name in ("text.mp4", "text.npz", "text.npy", "text.gif", "text.webp", "text.png", "notes.txt"):
        (at / name).write_text("my shopping list\n" * 20)
    with av.open(str(at / "sound.mp4"), "w") as container:
        track = container.add_stream("aac", rate=44100, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux([*track.encode(silence), *track.encode(None)])
    (at / "none.gif").write_bytes(b"GIF89a\x08\x00\x08\x00\x00\x00\x00;")  # a header and no picture


def spoil_arrays(at):
    np.save(at / "stored.npy", pixels().numpy())
    (at / "cut.npy").write_bytes((at / "stored.npy").read_bytes()[:300])
    whole = (at / "clip.npz").read_bytes()
    (at / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (at / "flipped.npz").write_bytes(whole[:120] + bytes(b ^ 255 for b in whole[120:160]) + whole[160:])
    np.save(at / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(at / "objects.npz", frames=np.array([{"a": 1}], dtype=object))
    np.save(at / "flat.npy", np.zeros((8, 8), np.uint8))
    np.save(at / "set.npy", np.zeros((2, 12, 1, 8, 8), np.uint8))
    np.save(at / "nothing.npy", np.zeros((0, 1, 8, 8), np.uint8))
    np.savez(at / "two.npz", a=np.zeros((5, 8, 8), np.uint8), b=np.zeros((5, 8, 8), np.uint8))
    np.save(at / "complex.npy", np.zeros((12, 8, 8), np.complex64))
    np.save(at / "one.npy", pixels(1).numpy())
    np.save(at / "layers.npy", pixels(12, 5).numpy())
    field = pixels().numpy().astype(np.float32) / 255
    np.save(at / "float.npy", field)
    np.save(at / "wide.npy", field * 300)
    np.save(at / "nan.npy", np.where(field > 0.5, np.nan, field))
    write_array(at / "slow.npz", pixels(), fps=1e-9, value_range=None, generated_by=BY)
    claim = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1, 8, 8)}"
    with zipfile.ZipFile(at / "claims.npz", "w") as archive:
        archive.writestr("frames.npy", claim.ljust(127) + b"\n" + bytes(640))


def spoil_folders(at):
    for name in ("uneven", "torn", "bare", "named.npz", "mine", "broken", "rates", "short"):
        (at / name).mkdir()
    for i in range(4):
        write_image(at / "uneven" / f"{i}.png", pixels(1, 1, 8, 8 + 2 * (i > 2))[0], comment="x")
        write_image(at / "torn" / f"{i}.png", pixels(1)[0], comment="x")
    (at / "torn" / "2.png").write_bytes((at / "torn" / "2.png").read_bytes()[:60])
    (at / "mine" / "diary.txt").write_text("private")
    write_clips(at / "clips", files=4, frames=12)
    (at / "broken" / "a.mp4").write_text("no video")
    (at / "broken" / "b.npz").write_text("no array")
    (at / "broken" / "c.gif").touch()
    for fps in (10.0, 25.0):
        write_array(at / "rates" / f"{fps:g}.npz", pixels(), fps=fps, value_range=None, generated_by=BY)
    np.save(at / "short" / "a.npy", pixels(2).numpy())
    shutil.copytree(at / "clips", at / "nans")
    for path in (at / "nans").iterdir():
        np.save(path, np.full((12, 1, 8, 8), np.nan, np.float32))


def spoil_settings(at):
    (at / "tiny.yaml").write_text(to_yaml(ramvid()))
    texts = {
        "open": "system: ramvid\nmodel: {width: 8\n",
        "list": "- system: ramvid\n",
        "key": "system: ramvid\nmodel: {widht: 8}\n",
        "kind": "system: ramvid\nmodel: {width: wide}\n",
        "infinite": "system: ramvid\nstages: {diffusion: {optimiser: {lr: .inf}}}\n",
        "system": "system: ramvit\n",
        "number": "system: 3\n",
        "preset": "preset: ramvid/votex16\n",
        "nothing": "",
    }
    for name, text in texts.items():
        (at / f"{name}.yaml").write_text(text)
    (at / "latin.yaml").write_bytes("system: ramvid\nsource: Höppe\n".encode("latin-1"))


def spoil_models(at):
    experiment = ramvid()
    video = VideoSpec(channels=1, height=8, width=8, clip_frames=5, fps=10.0)
    system = build_system("ramvid", to_plain(experiment.model), video, to_plain(experiment.sample))
    parts = {name: PartInfo(stage="diffusion", step=7) for name in system.parts()}
    save_model(at / "tiny", system, parts=parts, provenance={"data": "none"})

    def copy(name):
        shutil.copytree(at / "tiny", at / name)
        return at / name

    def edited(name, edit):
        path = copy(name) / "config.json"
        config = json.loads(path.read_text())
        edit(config)
        path.write_text(json.dumps(config))

    (copy("no-config") / "config.json").unlink()
    (copy("no-part") / "diffusion.safetensors").unlink()
    weights = copy("other-part") / "diffusion.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    weights = copy("cut-part") / "diffusion.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (copy("no-json") / "config.json").write_text("{not json")
    edited("field", lambda c: c["video"].update(value_range=[-1, 1]))
    edited("newer", lambda c: c.update(format_version=99))
    edited("unknown", lambda c: c.update(system="ramvit"))
    edited("untold", lambda c: c.update(parts={}))
    edited("wider", lambda c: c["model"].update(width=16))
    edited("uneven-width", lambda c: c["model"].update(width=9))
    edited("listed", lambda c: c.update(provenance=[1]))

    large = load_system(at / "tiny")
    next(large.parameters()).data.view(-1)[0] = 70_000
    save_model(at / "large", large, parts=parts, provenance={})


def spoil_weights(at):
    torch.save({"weight": torch.zeros(3)}, at / "other.pt")
    (at / "cut.pt").write_bytes((at / "other.pt").read_bytes()[:-300])
    (at / "page.pt").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    torch.save({"model": pathlib.PurePosixPath("x")}, at / "objects.pt")
    torch.save({"state": {}, "param_groups": []}, at / "opt.pt")
    torch.save({"input_blocks.0.0.weight": torch.zeros(())}, at / "scalar.pt")
    blocks = {"input_blocks.0.0": (32, 1, 1, 3, 3), "input_blocks.1.0.out_layers.3": (32, 32, 1, 3, 3)}
    blocks |= {"input_blocks.1.0.emb_layers.1": (64, 128), "out.2": (1, 32, 1, 3, 3)}
    torch.save({f"{name}.weight": torch.zeros(shape) for name, shape in blocks.items()}, at / "grey.pt")


def spoil_runs(at):
    experiment = change(ramvid(), data={"dir": str(at / "clips")}, max_steps=2, checkpoint_every=2)
    run(experiment, out=at / "run", device="cpu")
    for name in ("samples", "tensorboard"):  # files that no case looks at
        shutil.rmtree(at / "run" / name, ignore_errors=True)

    def copy(name):
        shutil.copytree(at / "run", at / name, symlinks=True)
        return at / name

    shutil.rmtree(copy("run-early") / STEP)
    (copy("run-stateless") / STEP / "train_state.json").unlink()
    (copy("run-torn") / STEP / "train_state.json").write_text('{"step"')
    tensors = copy("run-cut") / STEP / "train_state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    (copy("run-partless") / STEP / "diffusion.safetensors").unlink()
    (copy("run-config") / "config.yaml").write_text("model: [")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    at = tmp_path_factory.mktemp("world") / "home"
    at.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRAMECAST_CACHE", str(at.parent / "cache"))
        for spoil in (
            spoil_videos,
            spoil_arrays,
            spoil_folders,
            spoil_settings,
            spoil_models,
            spoil_weights,
            spoil_runs,
            spoil_rvd,
            spoil_networks,
            spoil_sets,
            spoil_samples,
            spoil_results,
        ):
            spoil(at)
    return SimpleNamespace(at=at, before=seen(at))


# ---- the table: what is typed, the exit code, what the sentence must say (a pattern)

COULD_NOT, WRONG_USAGE = 1, 2

FILES = [
    ("predict tiny empty.mp4", 1, r"empty\.mp4: the file is empty"),
    ("predict tiny torn.mp4", 1, r"torn\.mp4: not a readable video \(it is cut short"),
    ("predict tiny half.mp4 --gray --context 11", 1, r"half\.mp4: \d frames, the context needs 11: give a longer clip"),
    ("predict tiny text.mp4", 1, r"text\.mp4: not a readable video"),
    ("predict tiny text.gif", 1, r"text\.gif: not a readable video"),
    ("predict tiny text.webp", 1, r"text\.webp: not an image"),
    ("predict tiny text.png", 1, r"text\.png: not an image"),
    ("predict tiny sound.mp4", 1, r"sound\.mp4: there is no video in it, only audio"),
    ("predict tiny none.gif", 1, r"none\.gif: decoder stopped at frame 0"),
    ("predict tiny text.npz", 1, r"text\.npz: not a readable array"),
    ("predict tiny text.npy", 1, r"text\.npy: not a readable array \(it does not begin as an \.npy file does\)"),
    ("predict tiny cut.npy", 1, r"cut\.npy: not a readable array"),
    ("predict tiny cut.npz", 1, r"cut\.npz: not a readable array"),
    ("predict tiny flipped.npz", 1, r"flipped\.npz: "),
    ("predict tiny claims.npz", 1, r"claims\.npz: .+cut short of the shape \(1000000000, 1, 8, 8\) it claims"),
    ("predict tiny objects.npy", 1, r"objects\.npy: .+holds Python objects"),
    ("predict tiny objects.npz", 1, r"objects\.npz: .+holds Python objects"),
    ("predict tiny flat.npy", 1, r"flat\.npy: .+\(8, 8\).+\(T, C, H, W\)"),
    ("predict tiny set.npy", 1, r"set\.npy: .+a set of clips: store one of them"),
    ("predict tiny nothing.npy", 1, r"nothing\.npy: the array is empty"),
    ("predict tiny two.npz", 1, r"two\.npz: needs one array of frames.+a \(5, 8, 8\), b \(5, 8, 8\)"),
    ("predict tiny complex.npy --value-range 0,1", 1, r"complex64 values, which are not numbers of a picture"),
    ("predict tiny float.npy", 1, r"float\.npy: .+unknown range: pass it.+--value-range 0,1"),
    ("predict tiny nan.npy --value-range 0,1", 1, r"nan\.npy: frame 0 holds values that are not numbers"),
    ("predict tiny wide.npy --value-range 0,1", 1, r"wide\.npy: values span \S+ to \S+, outside the declared range 0"),
    ("predict tiny slow.npz", 1, r"slow\.npz: .+rate is probably wrong; leave fps out"),
    ("predict tiny one.npy", 1, r"one\.npy: 1 frame, the context needs 2: give a longer clip or a smaller --context"),
    ("interpolate tiny one.npy", 1, r"needs at least 2 frames, got 1"),
    ("predict tiny rgb.mp4", 1, r"rgb\.mp4: model expects 1 channel, clip has 3: add --gray"),
    ("predict tiny clip.npz --rgb", 1, r"clip\.npz: --rgb makes 3 channels of 1, but the model expects 1"),
    ("predict tiny layers.npy --gray", 1, r"5 channels, which are not colours: --gray does not apply"),
    (
        "predict tiny layers.npy",
        1,
        r"layers\.npy: model expects 1 channel, clip has 5: keep 1 of them in the array, or",
    ),
    ("predict tiny wide.npy --value-range -1,1", 1, r"wide\.npy: values span .+: declare their own with --value-range"),
    ("predict field wide.npy", 1, r"wide\.npy: values span .+-1 to 1, which is the model's: convert them to its units"),
    ("predict field rgb.mp4", 1, r"rgb\.mp4: model expects 1 channel, clip has 3: add --gray"),
    ("predict tiny uneven", 1, r"uneven: 3\.png is 10x8, 0\.png is 8x8"),
    ("predict tiny torn", 1, r"torn/2\.png: not an image"),
    ("predict tiny bare", 1, r"bare: the folder holds no numbered images"),
    ("predict tiny named.npz", 1, r"named\.npz: the folder holds no numbered images"),
    ("predict tiny missing.mp4", 1, r"missing\.mp4: there is no such file"),
    ("predict tiny clip.npz missing.npz", 1, r"missing\.npz: there is no such file"),
    ("predict tiny clip.npz --start 100", 1, r"clip\.npz: frame 100 on asked for, the clip has 12 frames"),
    ("predict tiny stored.npy --fps 5", 1, r"stored\.npy: its frame rate is not known.+leave --fps out"),
]

PLACES = [
    ("predict tiny clip.npz --out mine", 1, r"mine is not empty, and nothing in it is overwritten: use --out mine-2"),
    ("predict tiny clip.npz --out notes.txt", 1, r"notes\.txt is a file.+use --out notes\.txt-2"),
    ("predict tiny clip.npz --out notes.txt/sub", 1, r"notes\.txt is a file"),
    ("predict tiny clip.npz --out .", 1, r"\. is not empty, .+use --out out"),
    ("generate tiny --out clips", 1, r"clips is not empty"),
    ("train tiny.yaml --data clips --out mine", 1, r"mine exists already and is not overwritten"),
    ("train tiny.yaml --data clips --out notes.txt", 1, r"notes\.txt exists already and is not overwritten"),
    ("data show clips --data.channels 1 --clip-frames 4 --size 8 --out mine", 1, r"mine is not empty.+--out mine-2"),
    ("data simulate bouncing32 mine --flows 1 --frames 2", 1, r"mine holds other files.+give a new or empty folder"),
    ("data simulate bouncing32 notes.txt --flows 1 --frames 2", 1, r"notes\.txt holds other files"),
    ("demo --out notes.txt/demo --device cuda", 1, r"device cuda"),
]

USAGE = [
    ("predcit tiny clip.npz", 2, r"'predcit' is not a command\. Did you mean predict\?"),
    ("data chekc clips", 2, r"no command 'chekc'\. Did you mean check\?"),
    ("predict tiny clip.npz --horizn 3", 2, r"--horizn is not an option.+Did you mean --horizon\?"),
    ("predict tiny", 2, r"VIDEO"),
    ("infill tiny clip.npz", 2, r"--known"),
    ("generate tiny clip.npz", 2, r"no further word 'clip\.npz'"),
    ("predict tiny clip.npz --gray --rgb", 2, r"--rgb: not allowed with argument --gray"),
    ("predict tiny clip.npz --horizon 0", 2, r"--horizon: '0' is not a whole number above 0"),
    ("predict tiny clip.npz --horizon -3", 2, r"--horizon: '-3' is not a whole number above 0"),
    ("predict tiny clip.npz --horizon abc", 2, r"--horizon: 'abc' is not a whole number above 0"),
    ("predict tiny clip.npz --horizon 99999999999", 2, r"'99999999999' is above 1,000,000"),
    ("predict tiny clip.npz --context 0", 2, r"--context: '0' is not a whole number above 0"),
    ("predict tiny clip.npz --context 40", 1, r"clip\.npz: 12 frames, the context needs 40"),
    ("predict tiny clip.npz --samples 0", 2, r"--samples: '0' is not a whole number above 0"),
    ("predict tiny clip.npz --seed x", 2, r"--seed: 'x' is not a whole number"),
    ("predict tiny clip.npz --start -1", 2, r"--start: '-1' is not the number of a frame"),
    ("predict tiny clip.npz --fps inf", 2, r"--fps: 'inf' is not a number above 0"),
    ("predict tiny float.npy --value-range 1,0", 2, r"'1,0' is not two numbers, the smaller one first"),
    ("predict tiny clip.npz --format mp5", 2, r"'mp5' is not one of .+Did you mean mp4\? See"),
    ("predict tiny clip.npz --device gpu", 1, r"device 'gpu' is not one of auto, cpu"),
    ("infill tiny clip.npz --known 3-1", 2, r"the range 3-1 runs backwards; write 1-3"),
    ("infill tiny clip.npz --known 0,40", 1, r"known frame 40 is outside the clip: it has frames 0 to 11"),
    ("infill tiny clip.npz --known 0-11", 1, r"all 12 frames are known: there is nothing to fill in"),
    ("infill tiny clip.npz --known first", 2, r"'first' is not an index or a range; write for example 0-3,14-15"),
    ("infill tiny clip.npz --known 0-99999999999", 2, r"99999999999 is too high an index"),
    ("infill tiny clip.npz --known 0-3 --frames 20", 1, r"clip\.npz: 12 frames, --frames asks for 20"),
    ("interpolate tiny clip.npz --factor 1", 2, r"--factor is 1; it must be at least 2"),
    ("interpolate tiny clip.npz --factor 500000", 1, r"12 frames at a factor of 500000.+take a smaller factor"),
    ("reconstruct tiny clip.npz", 1, r"tiny \(ramvid\) cannot reconstruct"),
    ("demo --minutes nan", 2, r"--minutes: 'nan' is not a number above 0"),
    ("train --devices 0", 2, r"--devices: '0' is not a whole number above 0"),
]

SIMPLE = [  # forecasts in place of a model
    ("predict persistance clip.npz", 1, r"no model 'persistance'.+Did you mean persistence\?"),
    ("predict analog clip.npz", 1, r"analog looks for the nearest training windows: .+--sample\.reference DIR"),
    ("predict analog clip.npz --sample.reference bare", 1, r"bare holds no clips"),
    ("predict analog clip.npz --sample.reference nowhere", 1, r"nowhere does not exist"),
    ("predict analog clip.npz --sample.reference notes.txt", 1, r"notes\.txt is a file; give a folder"),
    ("predict analog clip.npz --sample.reference clips --horizon 20", 1, r"longest clip of clips has 12 frames"),
    ("predict analog rgb.mp4 --sample.reference clips", 1, r"clips have 1 channel .+the given one has 3: add --gray"),
    ("predict analog clip.npz --sample.reference clips --sample.neighbours 0", 1, r"neighbours is 0"),
    ("predict analog clip.npz --sample.neighbour 3", 2, r"Did you mean sample\.neighbours\?"),
    ("predict persistence clip.npz --sample.reference clips", 2, r"sample\.reference is not a setting"),
    ("predict linear-blend clip.npz", 1, r"linear-blend fills gaps .+that can: persistence, .+that predict: ramvid"),
    ("predict linear-extrapolation clip.npz --context 1", 1, r"needs two known frames"),
    ("infill motion-compensated clip.npz --known 0,5", 1, r"must come first\. Simple forecasts that can: persistence"),
    ("generate persistence", 1, r"makes frames from known ones and none is given\. Systems that generate: ramvid"),
    ("score persistence clip.npz", 1, r"persistence cannot score: it gives no likelihood"),
    ("predict persistence float.npy", 1, r"float\.npy: .+unknown range"),
]

SAMPLING = [
    ("--sampler ddimm", 2, r"sample\.sampler is 'ddimm'; it can be ddpm, ddim, dpmpp_2m"),
    ("--sample.stpes 3", 2, r"sample\.stpes is not a setting\. Did you mean sample\.steps\?"),
    ("--model.width 3", 2, r"--model\.width is not a setting here.+sample"),
    ("--steps 0", 1, r"steps 0 cannot be read; give a number from 1"),
    ("--steps 51", 1, r"51 steps among 50 of the 50 noise levels; ask for at most 50"),
    ("--steps 51 --sampler dpmpp_2m", 1, r"steps is 51; it must lie between 1 and the 50"),
    ("--steps ddim11", 1, r"no stride picks exactly 11 of 50 noise levels; write 11"),
    ("--steps many", 1, r"steps 'many' cannot be read"),
    ("--steps many --dry-run", 1, r"steps 'many' cannot be read"),
    ("--sample.eta 2", 1, r"eta is 2; it must lie between 0"),
    ("--sample.eta nan", 2, r"sample\.eta is 'nan', which is not a number"),
    ("--sample.overlap 5 --horizon 20", 1, r"overlap 5 must be at least 1 and below the window of 5 frames"),
    ("--sample.overlap -1", 1, r"overlap is -1"),
    ("--sample.window -4", 1, r"window is -4; it must be 0"),
    ("--sample.resample 2", 1, r"resample works with the sampler ddpm only, not with ddim; set it to 1"),
    ("--sample.label 3", 1, r"label 3 was asked for, but the model has no classes"),
]

SETTINGS = [
    ("train missing.yaml --data clips", 1, r"'missing\.yaml' is neither a file nor a preset"),
    ("train open.yaml --data clips", 1, r"open\.yaml is not YAML \(line 3, column 1: expected"),
    ("train list.yaml --data clips", 1, r"list\.yaml must be a table of settings"),
    ("train key.yaml --data clips", 1, r"key\.yaml: model\.widht is not a setting\. Did you mean width\?"),
    ("train kind.yaml --data clips", 1, r"kind\.yaml: model\.width is 'wide', which is not a whole number"),
    ("train infinite.yaml --data clips", 1, r"stages\.diffusion\.optimiser\.lr is inf, which is not a number"),
    ("train system.yaml --data clips", 1, r"system\.yaml: 'ramvit' is not a system\. Did you mean ramvid\?"),
    ("train number.yaml --data clips", 1, r"number\.yaml: 3 is not a system"),
    ("train preset.yaml --data clips", 1, r"preset\.yaml: 'ramvid/votex16' is not a preset\. Did you mean ramvid/vort"),
    ("train nothing.yaml --data clips", 1, r"nothing\.yaml names neither a system nor a preset"),
    ("train latin.yaml --data clips", 1, r"latin\.yaml is not text in UTF-8: save it as such"),
    ("config show latin.yaml", 1, r"latin\.yaml is not text in UTF-8"),
    ("config show ramvid/bear64", 1, r"'ramvid/bear64' is not a preset\. Did you mean ramvid/bair64\?"),
    ("train ramvid/votex16 --data clips", 1, r"'ramvid/votex16' is not a preset\. Did you mean ramvid/vortex16\?"),
    ("train votex16 --data clips", 1, r"'votex16' is neither a file nor a preset\. Did you mean ramvid/vortex16\?"),
    ("train ramvid/vortex16", 2, r"no training clips: give a folder of videos with --data DIR"),
    ("train", 2, r"nothing to train: name a preset or a file"),
    ("train tiny.yaml --dta.dir clips", 2, r"--dta\.dir is not a setting here\. Did you mean data\?"),
]

DATA = [
    ("--data nowhere", 1, r"nowhere does not exist; give a folder that holds clips"),
    ("--data clip.npz", 1, r"clip\.npz is a file; give a folder that holds clips"),
    ("--data bare", 1, r"bare holds no clips"),
    (
        "--data broken",
        1,
        r"broken holds 3 clips and none can be used: a\.mp4: .+; b\.npz: .+; c\.gif: the file is empty\.",
    ),
    ("--data rates", 1, r"fps differ \(10: 1 file, 25: 1\)\. Set data\.fps"),
    ("--data short", 1, r"a\.npy: has 2 frames; 3 frames × stride 1 need 3"),
    ("--data nans --data.value_range 0,1", 1, r"4 of 4 files of \S+nans broke while being read"),
    ("--data clips --data.value_range 1,0", 1, r"data\.value_range is 1 to 0"),
    ("--data clips --data.channels 2", 1, r"clip0\.npy: has 1 channel, data\.channels is 2 .set it to 1.; and 3 more"),
    ("--data clips --size abc", 2, r"data\.size is 'abc'"),
    ("--data clips --size 9", 1, r"9x9 pixels do not fit the network.+multiples of 2"),
    ("--data clips --stages.diffusion.max_known 5", 1, r"max_known is 5; .+below clip_frames, which is 5"),
    ("--data clips --stages.diffusion.accumulate 3", 1, r"batch is 4, which cannot be divided evenly by accumulate 3"),
    ("--data clips --stages.diffusion.optimiser.betas 2,3", 1, r"betas must lie in \[0, 1\)"),
    ("--data clips --model.width 9", 1, r"width 9 is not a multiple of the 4 groups"),
    ("--data clips --model.time_frames 4", 1, r"time_frames is 4, but clips have 5 frames"),
    (
        "--data clips --model.time_frames 5 --model.multipliers 1,2,2",
        1,
        r"time_frames is 5, which 3 levels cannot halve",
    ),
    ("--data clips --sample.steps 99", 1, r"99 steps among 50 of the 50 noise levels"),
    ("--data clips --max-steps 0", 1, r"stages\.diffusion\.max_steps is 0; it must be at least 1"),
    ("--data clips --stage difusion", 1, r"no stage 'difusion'\. Did you mean diffusion\?"),
    ("--data clips --device cuda", 1, r"device cuda: PyTorch sees no NVIDIA or AMD GPU here; take --device cpu"),
    ("--data clips --start-from cut-part", 1, r"cut-part/diffusion\.safetensors is damaged"),
    ("--data clips --start-from wider --model.width 12", 1, r"has shape .+, the model settings ask for"),
]

RUNS = [
    ("train --resume nowhere", 1, r"nowhere is not a run folder: there is no config\.yaml in it"),
    ("train --resume tiny", 1, r"tiny is not a run folder"),
    ("train --resume clip.npz", 1, r"clip\.npz is not a run folder"),
    ("train --resume run/checkpoints/last", 1, r"is one checkpoint; --resume takes the run folder"),
    ("train --resume run-early", 1, r"run-early holds no checkpoint yet"),
    ("train --resume run-stateless", 1, r"run-stateless/\S+ holds no training state; give it with --start-from"),
    ("train --resume run-torn", 1, r"run-torn/\S+train_state\.json is damaged"),
    ("train --resume run-cut", 1, r"run-cut/\S+train_state\.safetensors is damaged"),
    ("train --resume run-partless", 1, r"run-partless/\S+diffusion\.safetensors is missing"),
    ("train --resume run-config", 1, r"run-config/config\.yaml is not YAML \(line 1"),
    ("train --resume run --max-steps 5", 2, r"leave the settings out"),
    ("train --resume run --out new", 2, r"leave out --out"),
    ("train tiny.yaml --data clips --resume run --model.width 16", 1, r"the model settings differ from those of run"),
]

MODELS = [
    ("predict tinny clip.npz", 1, r"no model 'tinny'.+Did you mean tiny\?"),
    ("predict bare clip.npz", 1, r"bare is neither a model folder .+ nor a run folder"),
    ("predict notes.txt clip.npz", 1, r"notes\.txt is a file; a model is a folder"),
    (
        "predict other.pt clip.npz",
        1,
        r"other\.pt is a checkpoint of another program; convert it: framecast models import",
    ),
    ("predict no-config clip.npz", 1, r"no-config is neither a model folder"),
    ("predict no-json clip.npz", 1, r"no-json/config\.json is damaged"),
    ("predict no-part clip.npz", 1, r"no-part/diffusion\.safetensors is missing; copy or download"),
    ("predict other-part clip.npz", 1, r"is not the file that config\.json describes \(sha256 differs\)"),
    ("predict cut-part clip.npz", 1, r"cut-part/diffusion\.safetensors is damaged"),
    ("predict newer clip.npz", 1, r"written by a newer framecast \(format 99.+upgrade framecast"),
    ("predict unknown clip.npz", 1, r"unknown/config\.json: 'ramvit' is not a system\. Did you mean ramvid\?"),
    ("predict untold clip.npz", 1, r"untold has no trained part diffusion; train it"),
    ("predict wider clip.npz", 1, r"wider/diffusion\.safetensors: weight \S+ has shape"),
    ("predict uneven-width clip.npz", 1, r"uneven-width/config\.json: width 9 is not a multiple"),
    ("models export large half --half", 1, r"weight \S+ reaches 70000, and 16 bits hold up to 65504"),
    ("models export cut-part half --half", 1, r"cut-part/diffusion\.safetensors is damaged"),
    ("models export tiny mine --half", 1, r"mine exists already and is not overwritten"),
    ("models info listed", 1, r"listed/config\.json is damaged"),
    ("predict run-early clip.npz", 1, r"run-early holds no checkpoint yet"),
    ("models import page.pt --preset ramvid/bair64", 1, r"page\.pt is a web page, not a weight file"),
    ("models import cut.pt --preset ramvid/bair64", 1, r"cut\.pt is damaged or cut short"),
    ("models import objects.pt --preset ramvid/bair64", 1, r"objects\.pt holds objects other than tensors.+refused"),
    ("models import other.pt --preset ramvid/bair64", 1, r"other\.pt has no tensor input_blocks\.0\.0\.weight"),
    ("models import scalar.pt --preset ramvid/bair64", 1, r"scalar\.pt: input_blocks\.0\.0\.weight has shape \(\)"),
    ("models import grey.pt --preset ramvid/bair64", 1, r"grey\.pt is for clips of 1 channel.+set data\.channels to 1"),
    ("models import grey.pt --preset ramvid/bair64 --data.channels 1", 1, r"grey\.pt has no tensor"),
    ("models import opt.pt --preset ramvid/bair64", 1, r"opt\.pt is the state of an optimiser, not weights"),
    ("models import missing.pt --preset ramvid/bair64", 1, r"missing\.pt is not a file"),
    ("models import tiny --preset ramvid/bair64", 1, r"tiny is a folder, not a file"),
    (
        "models import other.pt --preset bair64",
        1,
        r"'bair64' is not a preset\. Did you mean ramvid/bair64 or rvd/bair64\?",
    ),
]

OTHERS = [
    ("data simulate vortx16 new", 1, r"no simulated set 'vortx16'\. Did you mean vortex16\?"),
    ("data simulate bouncing32 new --split trian", 1, r"no split 'trian'; choose from train"),
    ("data check nowhere", 1, r"nowhere does not exist"),
    ("data show broken", 1, r"broken holds 3 clips and none can be used"),
    ("config defaults ramvit", 1, r"'ramvit' is not a system\. Did you mean ramvid\?"),
]

SAMPLED = [(f"predict tiny clip.npz {words}", code, said) for words, code, said in SAMPLING]
TRAINED = [(f"train tiny.yaml --device cpu {words}", code, said) for words, code, said in DATA]
CASES = [*FILES, *PLACES, *USAGE, *SAMPLED, *SIMPLE, *SETTINGS, *TRAINED, *RUNS, *MODELS, *OTHERS, *JUDGING, *FORECAST]


# ---- the tests


def seen(folder):
    """Everything in a folder: files by their content, links by where they lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def assert_untouched(world):
    """The folder looks as it did before; if not, put it right as far as possible for the next case."""
    before, after = world.before, seen(world.at)
    for name in sorted(after.keys() - before.keys(), reverse=True):
        path = world.at / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    world.before = {name: after[name] for name in after if name in before}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not changed, f"written or removed: {sorted(changed)}"


def assert_sentence(err, said):
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
    assert "Traceback" not in err and "a bug in framecast" not in err
    assert re.search(said, lines[-1]), lines[-1]
    assert len(lines[-1]) < 400, "too long for one sentence"


@pytest.fixture
def refused(world, monkeypatch, capsys):
    """Run a command line in the spoiled folder and see that it refuses as it should."""

    def check(line, expected, said):
        monkeypatch.chdir(world.at)
        capsys.readouterr()
        code = main(shlex.split(line))
        told = capsys.readouterr()
        assert code == expected, told.err
        assert_sentence(told.err, said)
        assert told.out == ""
        assert_untouched(world)

    return check


@pytest.mark.parametrize(("line", "expected", "said"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_refused_in_a_sentence_and_touches_nothing(refused, line, expected, said):
    refused(line, expected, said)


@pytest.mark.parametrize(
    "line",
    [
        "predict tiny clip.npz",
        "train tiny.yaml --data clips",
        "train --resume run",
        "infill run clip.npz --known 0",
        "predict rvd clip.npz",
        "infill rvd clip.npz --known 0-2",
        "train rvd.yaml --data clips",
    ],
)
def test_what_the_cases_spoil_works_when_it_is_whole(world, monkeypatch, line):
    monkeypatch.chdir(world.at)
    assert main([*line.split(), "--device", "cpu", "--dry-run"]) == 0
    assert_untouched(world)


@pytest.mark.parametrize(
    "line",
    [
        "evaluate kept --data flows --windows 2",
        "evaluate kept-bytes --data flows --windows 2",
        "evaluate kept-videos --data flows --windows 2 --lossy",
        "evaluate all.npy --data flows --windows 2 --value-range -1,1",
        "compare result result-again",
        "score tiny one.npy --levels 2",
    ],
)
def test_what_judging_reads_works_when_it_is_whole(world, monkeypatch, tmp_path, line):
    monkeypatch.chdir(world.at)
    assert main([*line.split(), "--out", str(tmp_path / "new")]) == 0
    assert list((tmp_path / "new").iterdir())
    assert_untouched(world)


def test_weights_are_taken_when_they_are_whole(world, monkeypatch):
    monkeypatch.chdir(world.at)
    words = "--i3d i3d-untold.pt --i3d-eps 1e-5 --lpips alex.pt --dry-run"
    assert main(["evaluate", "persistence", "--data", "flows", *words.split()]) == 0
    assert_untouched(world)


def test_windows_beyond_what_there_is_are_all_there_are(world, monkeypatch, capsys):
    monkeypatch.chdir(world.at)
    capsys.readouterr()
    words = ["--data", "flows", "--windows", "999", "--dry-run", "--json"]
    assert main(["evaluate", "persistence", *words]) == 0
    assert json.loads(capsys.readouterr().out)["cases"][0].startswith("4 → 12, beside the truth: 128 windows")


def test_pipe_without_a_clip_is_told(refused, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    refused("predict tiny -", COULD_NOT, r"-: not a readable array")


def test_full_disk_leaves_no_half_written_folder(refused, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(forecast, "write_array", full)  # the last of the files
    refused("predict tiny clip.npz --out deep/new", COULD_NOT, r"No space left on device")


def test_no_memory_is_no_bug(refused, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("framecast.generate.stream", full)
    refused("predict tiny clip.npz", COULD_NOT, r"no memory left for this batch: lower --batch")


def test_hub_out_of_reach_is_told(refused, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    refused("predict nobody/nothing clip.npz", COULD_NOT, r"nobody/nothing is no folder here, and could not be fetched")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize(
    ("line", "locked", "said"),
    [
        ("predict tiny clip.npz", "clip.npz", r"clip\.npz: "),
        ("predict tiny clip.npz --out bare/new", "bare", r"nothing can be written to bare"),
    ],
)
def test_what_may_not_be_touched_is_told(refused, world, line, locked, said):
    mode = (world.at / locked).stat().st_mode
    (world.at / locked).chmod(0o500 if (world.at / locked).is_dir() else 0)
    try:
        refused(line, COULD_NOT, said)
    finally:
        (world.at / locked).chmod(mode)


def test_clips_of_one_name_get_folders_of_their_own(world, monkeypatch, tmp_path):
    paths = [tmp_path / side / "clip.npz" for side in ("left", "right")]
    for path in paths:
        path.parent.mkdir()
        shutil.copy(world.at / "clip.npz", path)
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--out", "both"]):
        assert (
            main(["predict", str(world.at / "tiny"), *map(str, paths), "--format", "npz", "--device", "cpu", *words])
            == 0
        )
    made = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("result.json"))
    assert made == ["both/clip", "both/clip-2", "out/clip", "out/clip-2"]


@pytest.mark.parametrize(
    ("words", "expected", "said"),
    [
        (["predcit"], WRONG_USAGE, r"Did you mean predict\?"),
        (["config", "show", "latin.yaml"], COULD_NOT, r"latin\.yaml is not text in UTF-8"),
        (["train", "open.yaml", "--data", "clips"], COULD_NOT, r"open\.yaml is not YAML"),
        (["predict", "tiny", b"caf\xe9.mp4"], COULD_NOT, r"there is no such file"),
    ],
)
def test_a_process_of_its_own_refuses_alike(world, words, expected, said):
    ran = subprocess.run([sys.executable, "-m", "framecast", *words], cwd=world.at, capture_output=True, text=True)
    assert ran.returncode == expected, ran.stderr
    assert_sentence(ran.stderr, said)
    assert ran.stdout == ""
    assert_untouched(world)
