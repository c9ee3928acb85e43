"""The list of a folder's clips and its cache."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from framecast.assets import cache_dir
from framecast.data import folder
from framecast.data.folder import index_folder
from tests.data import numbered
from tests.data.clip_folders import counting, write


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that were opened."""
    names = []

    def counted(path, **options):
        names.append(path.name)
        return real(path, **options)

    real = folder.open_clip
    monkeypatch.setattr(folder, "open_clip", counted)
    return names


@pytest.fixture
def clips(tmp_path):
    root = tmp_path / "clips"
    for name in ("b", "a", "deep/er/c"):
        write(root / name, counting(6, channels=3, height=10, width=12))
    return root


def cache_files():
    return sorted((cache_dir() / "index").glob("*"))


def test_clips_are_listed_by_sorted_relative_path(clips):
    listed = index_folder(clips)
    assert [file.path for file in listed] == ["a.npy", "b.npy", "deep/er/c.npy"]
    assert (listed[0].frames, listed[0].channels, listed[0].height, listed[0].width) == (6, 3, 10, 12)


def test_hidden_names_are_skipped_and_suffixes_may_be_capitals(clips):
    (clips / "b.npy").rename(clips / "B.NPY")
    write(clips / ".hidden", counting(4))
    write(clips / ".git" / "x", counting(4))
    assert [file.path for file in index_folder(clips)] == ["B.NPY", "a.npy", "deep/er/c.npy"]


def test_folder_of_numbered_frames_is_one_clip(clips):
    (clips / "walk").mkdir()
    for i in range(5):
        Image.fromarray(np.full((8, 9, 3), i, np.uint8)).save(clips / "walk" / f"frame_{i:03d}.png")
    walk = next(file for file in index_folder(clips) if file.path == "walk")
    assert (walk.problem, walk.frames, walk.height, walk.width) == (None, 5, 8, 9)


def test_thumbnails_beside_videos_are_no_clip(tmp_path):
    for i in range(3):
        numbered.write(tmp_path / f"{i}.mp4", count=5)
        Image.fromarray(np.full((8, 9, 3), i, np.uint8)).save(tmp_path / f"{i}.jpg")
    assert [file.path for file in index_folder(tmp_path)] == ["0.mp4", "1.mp4", "2.mp4"]


def test_frames_beside_one_video_stay_a_clip(clips):
    (clips / "walk").mkdir()
    for i in range(5):
        Image.fromarray(np.full((8, 9, 3), i, np.uint8)).save(clips / "walk" / f"{i}.png")
    numbered.write(clips / "walk" / "all.mp4", count=5)
    assert next(file for file in index_folder(clips) if file.path == "walk").frames == 5


def test_unreadable_files_get_a_problem_and_stop_nobody(clips):
    (clips / "empty.npy").touch()
    (clips / "text.mp4").write_text("this is no video")
    whole = (clips / "a.npy").read_bytes()
    (clips / "torn.npy").write_bytes(whole[:60])
    np.save(clips / "float.npy", np.zeros((4, 1, 8, 8), np.float32))
    listed = {file.path: file.problem for file in index_folder(clips)}
    assert {path for path, problem in listed.items() if problem} == {"empty.npy", "text.mp4", "torn.npy", "float.npy"}
    assert "empty" in listed["empty.npy"] and "value_range" in listed["float.npy"]


def test_second_index_opens_nothing_and_says_the_same(clips, opened):
    (clips / "empty.npy").touch()
    before = index_folder(clips)
    assert sorted(opened) == ["a.npy", "b.npy", "c.npy", "empty.npy"]
    opened.clear()
    assert index_folder(clips) == before and opened == []


def test_only_changed_and_new_files_are_opened_again(clips, opened):
    index_folder(clips)
    opened.clear()
    write(clips / "a", counting(9))
    write(clips / "new", counting(3))
    (clips / "b.npy").unlink()
    listed = {file.path: file.frames for file in index_folder(clips)}
    assert listed == {"a.npy": 9, "deep/er/c.npy": 6, "new.npy": 3}
    assert sorted(opened) == ["a.npy", "new.npy"]


def test_same_size_with_another_time_is_opened_again(clips, opened):
    index_folder(clips)
    opened.clear()
    os.utime(clips / "a.npy", ns=(1, 1))
    index_folder(clips)
    assert opened == ["a.npy"]


def test_new_frame_in_a_folder_of_frames_is_noticed(clips):
    (clips / "walk").mkdir()
    for i in range(5):
        Image.fromarray(np.full((8, 9, 3), i, np.uint8)).save(clips / "walk" / f"{i}.png")
        assert i < 1 or next(f for f in index_folder(clips) if f.path == "walk").frames == i + 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 1, "clips": [{"path": 3}]}'])
def test_damaged_cache_is_rebuilt(clips, content):
    before = index_folder(clips)
    (store,) = cache_files()
    whole = json.loads(store.read_text())
    store.write_text(content)
    assert index_folder(clips) == before
    assert json.loads(store.read_text()) == whole


def test_another_value_range_does_not_take_the_old_list(clips):
    np.save(clips / "float.npy", np.zeros((4, 1, 8, 8), np.float32))
    problems = [sum(f.problem is not None for f in index_folder(clips, value_range=r)) for r in (None, (0, 1), None)]
    assert problems == [1, 0, 1]


def test_users_folder_is_left_as_it_was(clips):
    before = sorted(clips.rglob("*"))
    index_folder(clips)
    assert sorted(clips.rglob("*")) == before
    assert len(cache_files()) == 1  # whole files only, no leftovers


def test_cache_that_cannot_be_written_only_costs_time(clips, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FRAMECAST_CACHE", str(tmp_path / "file" / "below"))
    assert len(index_folder(clips)) == 3


def test_interrupted_scan_keeps_what_it_has(clips, opened):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_folder(clips, progress=stop)
    opened.clear()
    assert len(index_folder(clips)) == 3
    assert len(opened) == 1


def test_progress_counts_the_files_that_were_opened(clips):
    calls = []
    index_folder(clips, progress=lambda done, total: calls.append((done, total)))
    index_folder(clips, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_ring_of_links_ends(clips):
    (clips / "deep" / "back").symlink_to(clips, target_is_directory=True)
    assert [file.path for file in index_folder(clips)] == ["a.npy", "b.npy", "deep/er/c.npy"]


def test_link_that_leads_nowhere_is_not_a_frame(clips):
    (clips / "walk").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 9, 3), i, np.uint8)).save(clips / "walk" / f"{i}.png")
    (clips / "walk" / "3.png").symlink_to("gone.png")
    walk = next(file for file in index_folder(clips) if file.path == "walk")
    assert (walk.problem, walk.frames) == (None, 3)


def test_folder_that_may_not_be_read_is_skipped_and_told(clips, monkeypatch, caplog):
    real = type(clips).iterdir

    def locked(self):
        if self.name == "er":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(type(clips), "iterdir", locked)
    assert [file.path for file in index_folder(clips)] == ["a.npy", "b.npy"]
    assert [record.message for record in caplog.records] == [f"{clips / 'deep' / 'er'} may not be read and is skipped."]


def test_uneven_time_stamps_survive_the_cache(clips, monkeypatch):
    class Uneven:
        path, frames, fps, channels, height, width, value_range = None, 4, 10.0, 1, 8, 8, None
        times = np.array([0.0, 0.1, 0.25, 0.3])

    monkeypatch.setattr(folder, "open_clip", lambda path, **options: Uneven())
    for _ in range(2):
        assert index_folder(clips)[0].times.tolist() == [0.0, 0.1, 0.25, 0.3]


@pytest.mark.parametrize(
    ("make", "words"), [(None, "does not exist"), ("touch", "is a file"), ("mkdir", "holds no clips")]
)
def test_no_clips_at_all_is_one_sentence(tmp_path, make, words):
    place = tmp_path / "place"
    if make:
        getattr(place, make)()
    with pytest.raises(ValueError, match=words):
        index_folder(place)
