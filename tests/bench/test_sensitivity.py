"""What rf3d-v1 must see of known changes, beside what differs by chance; fewer clips and changes than the real rows."""

import pytest
import torch

from framecast.bench import sensitivity
from framecast.bench.run import cells
from framecast.data.simulate.sets import flows

CHANGES = ["none (floor)", "frames shuffled in time", "first frame frozen", "brightness + 20", "5×5 blur"]


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "CHANGES", {change: sensitivity.CHANGES[change] for change in CHANGES})
        return {row["change"]: row for row in sensitivity.sensitivity(clips=128, device="cpu")}


def test_independent_sets_are_near_zero_apart_and_cover_each_other(rows):
    for part in rows["none (floor)"]["scores"].values():
        assert part["frechet"] < 0.25 and part["coverage"] > 0.85 and 0.7 < part["density"] < 1.4
        assert part["silent"] == 0


@pytest.mark.parametrize(
    ("change", "seen", "times"),
    [
        ("frames shuffled in time", {"motion"}, 20),
        ("first frame frozen", {"appearance", "motion"}, 4),
        ("brightness + 20", {"appearance"}, 20),
        ("5×5 blur", {"appearance", "motion"}, 20),
    ],
)
def test_each_part_sees_what_it_is_for(rows, change, seen, times):
    for part, floor in rows["none (floor)"]["scores"].items():
        told = rows[change]["scores"][part]["frechet"]
        if part in seen:
            assert told > times * floor["frechet"], part
        else:
            assert told == pytest.approx(floor["frechet"], rel=0.05), part


def test_digits_are_the_clips_of_the_set_and_faster_where_asked():
    clips = sensitivity.digits("test", 2)
    assert torch.equal(clips, torch.stack([clip.frames for clip in flows("bouncing32", "test", 2)]))
    fast = sensitivity.digits("test", 2, speed=1.5)
    assert torch.equal(fast[:, 0], clips[:, 0]) and not torch.equal(fast[:, 1], clips[:, 1])


def test_changes_keep_number_shape_and_kind_of_clips():
    for change, make in sensitivity.CHANGES.items():
        made = make(3)
        assert made.dtype == torch.uint8 and made.shape == (3, 16, 1, 32, 32), change


def test_row_tells_both_parts_and_the_number_of_clips(rows):
    said = list(cells(rows["5×5 blur"]))
    assert said[:2] == ["rf3d-v1", "bouncing32, 128 clips a side: 5×5 blur"]
    assert "appearance" in said[-1] and "motion" in said[-1] and "clips/s" in said[-2]
    assert "fvd" not in str(rows).lower()
