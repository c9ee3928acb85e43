"""Video files: every frame exact, nothing decoded in vain, one clear sentence for every kind of broken file."""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from framecast.data import video_file
from framecast.data.files import BadClip
from framecast.data.video_file import open_video, write_video
from tests.conftest import real_videos
from tests.data import numbered

OPEN_GOP = {"x264-params": "keyint=12:min-keyint=12:open-gop=1:scenecut=0:bframes=3"}
KINDS = {
    "h264.mp4": dict(options={"g": "25", "bf": "2"}),
    "open-gop.mp4": dict(options=OPEN_GOP),
    "open-gop.ts": dict(options=OPEN_GOP),
    "h264.mkv": dict(options={"g": "12"}),
    "h264.avi": dict(options={"bf": "2"}),
    "mpeg4.avi": dict(codec="mpeg4", options={"g": "12"}),
    "mpeg4-b.avi": dict(codec="mpeg4", options={"bf": "2"}),
    "h265.mp4": dict(codec="libx265", options={"x265-params": "keyint=12:open-gop=1:log-level=none"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"g": "20", "deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": dict(codec="libvpx", options={"g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "400k"}),
    "grey10.mkv": dict(codec="ffv1", pix_fmt="gray10le"),
    "colour10.mkv": dict(codec="ffv1", pix_fmt="yuv444p10le"),
    "alpha.mkv": dict(codec="ffv1", pix_fmt="bgra"),
    "animation.gif": dict(codec="gif", pix_fmt="rgb8"),
    "stream.h264": dict(),
    "mjpeg.avi": dict(codec="mjpeg", pix_fmt="yuvj420p"),
    "odd.mkv": dict(codec="ffv1", pix_fmt="bgra", height=37, width=51),
}


@pytest.mark.parametrize("name", KINDS)
def test_any_frame_of_any_kind_is_exact(tmp_path, name):
    path = numbered.write(tmp_path / name, **KINDS[name])
    video = open_video(path)
    assert video.frames == 60
    assert video.channels == (1 if "grey" in name else 3)
    assert (video.height, video.width) == (KINDS[name].get("height", 48), KINDS[name].get("width", 64))
    rng = random.Random(0)
    for _ in range(4):
        wanted = [rng.randrange(60) for _ in range(3)]
        wanted += list(range(wanted[0], min(60, wanted[0] + 4)))
        assert numbered.numbers(video.read(wanted)) == wanted
    assert numbered.numbers(video.read([59, 0, 59])) == [59, 0, 59]
    assert video.read([]).shape == (0, video.channels, video.height, video.width)


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.avi", "vp9.webm", "grey10.mkv"])
def test_rate_and_times_are_told(tmp_path, name):
    video = open_video(numbered.write(tmp_path / name, **KINDS[name], rate=Fraction(30000, 1001)))
    assert video.fps == pytest.approx(30000 / 1001, rel=1e-4)
    assert np.abs(video.times - np.arange(60) * 1001 / 30000).max() < 1e-3


def test_varying_rate_keeps_true_times(tmp_path):
    stamps = [0, 40, 80, 200, 240, 500, 540]
    path = numbered.write(tmp_path / "a.mkv", codec="ffv1", pix_fmt="bgra", count=7, stamps=stamps)
    video = open_video(path)
    assert np.allclose(video.times * 1000, stamps)
    assert video.fps == pytest.approx(6 / 0.54)
    assert numbered.numbers(video.read([5, 3])) == [5, 3]


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation_of_the_file_is_applied(tmp_path, angle):
    video = open_video(numbered.write(tmp_path / "a.mp4", count=3, rotation=angle))
    frame = video.read([2])[0].permute(1, 2, 0).numpy()
    plain = open_video(numbered.write(tmp_path / "b.mp4", count=3)).read([2])[0].permute(1, 2, 0).numpy()
    assert frame.shape == ((64, 48, 3) if angle != 180 else (48, 64, 3))
    # the display matrix turns counterclockwise
    assert np.array_equal(frame, np.rot90(plain, angle // 90))


def two_videos(path, *, first="mpeg4", pix_fmt="yuv420p", cover=False):
    """Two videos in one file: the first counts from 0 (or is one picture, the cover), the second from 100."""
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream(codec, rate=25) for codec in (first, "mpeg4")]
        for track, kind in zip(tracks, (pix_fmt, "yuv420p")):
            track.width, track.height, track.pix_fmt = 64, 48, kind
        if cover:
            tracks[0].disposition = av.stream.Disposition.attached_pic
        for track, begin, count in zip(tracks, (0, 100), (1 if cover else 10, 10)):
            for i in range(count):
                container.mux(track.encode(av.VideoFrame.from_ndarray(numbered.picture(begin + i), format="rgb24")))
            container.mux(track.encode(None))
    return path


def test_first_of_several_videos_unless_another_is_chosen(tmp_path):
    path = two_videos(tmp_path / "two.mkv")
    assert numbered.numbers(open_video(path).read([3])) == [3]
    assert numbered.numbers(open_video(path, stream=1).read([3])) == [103]
    with pytest.raises(BadClip, match=r"two\.mkv: video 2 asked for, it holds videos 0 to 1\."):
        open_video(path, stream=2)


def test_covers_are_no_videos(tmp_path):
    path = two_videos(tmp_path / "a.mp4", first="mjpeg", pix_fmt="yuvj420p", cover=True)
    assert numbered.numbers(open_video(path).read([3])) == [103]


@pytest.mark.parametrize("path", real_videos() or [None], ids=lambda p: p.name if p else "absent")
def test_real_clips_windows_equal_sequential_decoding(path):
    if path is None:
        pytest.skip("no real clips at hand: set FRAMECAST_VIDEOS")
    video = open_video(path)
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    assert video.frames == len(whole)
    rng = random.Random(1)
    for _ in range(5):
        start, stride = rng.randrange(video.frames), rng.choice([1, 2, 7])
        wanted = list(range(start, min(video.frames, start + 8 * stride), stride))
        got = video.read(wanted).permute(0, 2, 3, 1).numpy()
        assert all(np.array_equal(frame, whole[i]) for frame, i in zip(got, wanted))


@pytest.fixture
def decoded(monkeypatch):
    """Numbers of all frames that come out of the decoder."""
    seen, original = [], video_file._decoded

    def counting(video, rank):
        for number, frame in original(video, rank):
            seen.append(number)
            yield number, frame

    monkeypatch.setattr(video_file, "_decoded", counting)
    return seen


def test_nothing_is_decoded_beyond_need(tmp_path, decoded):
    video = open_video(numbered.write(tmp_path / "a.mp4", count=100, options={"g": "25", "sc_threshold": "0"}))
    assert decoded == [0]  # opening looks at the first picture only
    for wanted, expected in {
        (60,): range(50, 61),  # from the key frame on
        (60, 61, 62): range(50, 63),
        (49, 50): range(25, 51),  # on over a key frame: no second start
        (2, 80): [0, 1, 2, *range(75, 81)],  # a seek between them
        (99, 75): range(75, 100),
    }.items():
        decoded.clear()
        assert numbered.numbers(video.read(wanted)) == list(wanted)
        assert decoded == list(expected)


def test_a_clip_can_be_sent_to_another_process(tmp_path):
    import pickle

    video = pickle.loads(pickle.dumps(open_video(numbered.write(tmp_path / "a.mp4", count=30))))
    assert numbered.numbers(video.read([29, 4])) == [29, 4]


def test_a_single_frame_is_a_clip(tmp_path):
    video = open_video(numbered.write(tmp_path / "a.mp4", count=1))
    assert (video.frames, video.times.tolist(), video.fps) == (1, [0.0], 25.0)


def test_a_header_that_lies_is_not_believed(tmp_path):
    path = numbered.write(tmp_path / "a.avi", codec="mpeg4", count=30)
    data = bytearray(path.read_bytes())
    for at in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):  # frames in the file, length of the track
        data[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    video = open_video(path)
    assert (video.promised, video.frames) == (1000, 30)
    assert numbered.numbers(video.read([29])) == [29]
    with pytest.raises(BadClip, match=r"frame 30 asked for, the file has frames 0 to 29; its header promises 1000"):
        video.read([30])


def packets(path):
    """Where the packets lie in the file, in order of showing: (number, position, size)."""
    with av.open(str(path)) as container:
        found = [(p.pts, p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    return [(number, pos, size) for number, (_, pos, size) in enumerate(sorted(found))]


@pytest.mark.parametrize("damage", ["all of a packet", "three bytes of it"])
def test_damage_in_the_middle_is_named_and_the_rest_is_readable(tmp_path, damage):
    path = numbered.write(tmp_path / "a.mp4", count=60, options={"g": "20", "bf": "0", "sc_threshold": "0"})
    data = bytearray(path.read_bytes())
    _, pos, size = packets(path)[25]
    begin, end = (pos + 4, pos + size) if damage == "all of a packet" else (pos + size // 2, pos + size // 2 + 3)
    data[begin:end] = bytes(255 - b for b in data[begin:end])
    path.write_bytes(data)
    video = open_video(path)
    assert numbered.numbers(video.read([24, 40, 3])) == [24, 40, 3]
    with pytest.raises(BadClip, match=r"a\.mp4: decoder stopped at frame 25 \(.+\)\.$"):
        video.read([30])


def test_a_broken_tail_is_named(tmp_path):
    path = numbered.write(tmp_path / "a.mkv", codec="libvpx-vp9", options={"g": "60", "deadline": "realtime"}, count=30)
    data = bytearray(path.read_bytes())
    for _, pos, size in packets(path)[20:]:
        at = data.index(data[pos : pos + size]) if size > 8 else pos
        data[at : at + size + 8] = b"\0" * (size + 8)
    (tmp_path / "b.mkv").write_bytes(data)
    video = open_video(tmp_path / "b.mkv")
    assert numbered.numbers(video.read([10])) == [10]
    with pytest.raises(BadClip, match=r"b\.mkv: (decoder stopped at frame \d+|frame 29 asked for)"):
        video.read([29])


def test_a_file_cut_short_keeps_its_whole_frames(tmp_path):
    path = numbered.write(tmp_path / "a.avi", codec="mpeg4", count=60, options={"g": "10"})
    _, pos, size = packets(path)[30]
    path.write_bytes(path.read_bytes()[: pos + size // 2])
    video = open_video(path)
    assert video.frames == 30
    assert numbered.numbers(video.read(range(30))) == list(range(30))
    with pytest.raises(BadClip, match="its header promises 60, so it was cut short"):
        video.read([45])


def test_frames_cut_off_by_an_edit_list_do_not_count(tmp_path):
    source = numbered.write(tmp_path / "a.mp4", count=40, options={"g": "12", "bf": "2"})
    path = tmp_path / "b.mp4"
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        track = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - 5 * 512, packet.dts - 5 * 512, track
                new.mux(packet)
    video = open_video(path)
    assert (video.frames, video.promised) == (35, 35)
    assert numbered.numbers(video.read([0, 4, 6, 7, 34])) == [5, 9, 11, 12, 39]


def test_hidden_vp8_pictures_do_not_count(tmp_path):
    path = numbered.write(tmp_path / "a.webm", codec="libvpx", count=30, options={"g": "10", "deadline": "realtime"})
    with av.open(str(path)) as container:
        content = [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]
    data = bytearray(path.read_bytes())
    data[data.index(content[15])] &= ~0x10  # show_frame
    path.write_bytes(data)
    video = open_video(path)
    assert video.frames == 29
    assert numbered.numbers(video.read([14, 15, 28])) == [14, 16, 29]


def audio_only(path):
    with av.open(str(path), "w") as container:
        track = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))


def cut_mp4(path):
    data = numbered.write(path, count=40).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def no_frames(path):
    with av.open(str(path), "w") as container:
        track = container.add_stream("mpeg4", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("gone.mp4", lambda p: None, "there is no such file"),
        ("empty.mp4", lambda p: p.write_bytes(b""), "the file is empty"),
        ("text.mp4", lambda p: p.write_text("not a video\n" * 99), "not a readable video"),
        (
            "list.mp4",
            lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"),
            "not a readable video",
        ),
        ("noise.avi", lambda p: p.write_bytes(random.Random(0).randbytes(5000)), "not a readable video"),
        ("sound.mp4", audio_only, "there is no video in it, only audio"),
        ("cut.mp4", cut_mp4, "not a readable video .its end, where the list of frames is kept, is missing"),
        ("none.avi", no_frames, "no frames|not a readable video"),
    ],
)
def test_unusable_files_get_one_clear_sentence(tmp_path, name, make, says):
    path = tmp_path / name
    make(path)
    with pytest.raises(BadClip) as caught:
        open_video(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message
    assert re.search(says, message)


def test_written_video_has_the_right_rate_size_and_says_what_it_is(tmp_path):
    frames = torch.from_numpy(np.stack([numbered.picture(i, 47, 63) for i in range(20)])).permute(0, 3, 1, 2)
    path = write_video(tmp_path / "deep" / "a.mp4", frames, 30000 / 1001, comment="generated by toy-model", title="Toy")
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        assert track.average_rate == Fraction(30000, 1001)
        assert (track.codec_context.name, track.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert container.metadata["comment"] == "generated by toy-model"
        assert container.metadata["title"] == "Toy"
    video = open_video(path)
    assert (video.frames, video.height, video.width) == (20, 48, 64)
    back = video.read(range(20))
    assert numbered.numbers(back) == list(range(20))
    assert (back[:, :, :47, :63].float() - frames.float()).abs().mean() < 6  # lossy, but not by much
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_grey_frames_are_written_grey(tmp_path):
    frames = torch.full((4, 1, 16, 16), 77, dtype=torch.uint8)
    back = open_video(write_video(tmp_path / "a.mp4", frames, None, comment="c")).read([0])
    assert (back.int() - 77).abs().max() <= 2


def test_nothing_is_overwritten_or_left_half_written(tmp_path):
    frames = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    path = write_video(tmp_path / "a.mp4", frames, 10, comment="first")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_video(path, frames, 10, comment="second")
    assert path.read_bytes() == before
    write_video(path, frames, 10, comment="second", overwrite=True)
    assert path.read_bytes() != before
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "b.mp4", frames.float(), 10, comment="c")
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_reading_by_the_header_alone_gives_way_where_it_fails(tmp_path, monkeypatch):
    video = open_video(numbered.write(tmp_path / "a.mp4", count=60, options={"g": "20", "sc_threshold": "0"}))
    opened, original = [], video_file._container

    def failing(path, *, probe=None):
        opened.append(probe is not None)
        if probe:
            raise BadClip("no")
        return original(path)

    monkeypatch.setattr(video_file, "_container", failing)
    assert numbered.numbers(video.read([45, 5])) == [45, 5]
    assert opened == [True, False, True, False]


def test_containers_that_do_not_describe_their_streams_are_looked_into(tmp_path):
    assert open_video(numbered.write(tmp_path / "a.mkv", count=5))._brief
    assert not open_video(numbered.write(tmp_path / "a.ts", count=5))._brief


def test_key_frames_come_as_often_as_asked_for(tmp_path):
    frames = torch.from_numpy(np.stack([numbered.picture(i) for i in range(60)])).permute(0, 3, 1, 2)
    often = open_video(write_video(tmp_path / "a.mp4", frames, 25, comment="c", key_every=25))
    assert [often.key_frame(i) for i in (0, 24, 25, 59)] == [0, 0, 25, 50]
    assert [often.without_seeking().key_frame(i) for i in (24, 59)] == [0, 0]
    assert numbered.numbers(often.without_seeking().read([50, 3, 41])) == [50, 3, 41]


def _coloured(path, matrix):
    """A saturated clip whose stream is tagged with this colour matrix."""
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        track.codec_context.colorspace = matrix
        for i in range(4):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane, value in zip(frame.planes, (120 + i, 60, 200)):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.colorspace = matrix
            for packet in track.encode(frame):
                container.mux(packet)
        for packet in track.encode():
            container.mux(packet)
    return path


def test_colours_of_one_clip_do_not_leak_into_the_next_of_its_size(tmp_path):
    paths = [_coloured(tmp_path / f"{matrix}.mp4", matrix) for matrix in (1, 6)]  # ITU-R BT.709 and BT.601

    def alone(path):
        """Read by a thread of its own, which has kept nothing."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: open_video(path).read([0, 3])).result()

    first, second = (alone(path) for path in paths)
    assert (first.int() - second.int()).abs().max() > 10  # the tag matters
    for _ in range(2):
        for path, expected in zip(paths, (first, second)):
            assert torch.equal(open_video(path).read([0, 3]), expected)
