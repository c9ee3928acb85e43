# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of official RVD checkpoints are those of the published experiments' networks."""

import json

import pytest
import torch

from framecast.systems import preset, presets
from framecast.systems.rvd import weights
from framecast.systems.rvd.config import RVDConfig
from tests.parity.walk import folders

PUBLISHED = [preset(name) for name in presets() if name.startswith("rvd/") and preset(name).published]


@pytest.mark.parametrize("folder", folders("rvd-shapes"))
def test_published_networks_have_the_official_names_and_shapes(folder):
    lists = sorted(folder.glob("*.json"))
    assert lists
    for path in lists:
        shapes = json.loads(path.read_text())
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        blank = RVDConfig(width=8, multipliers=(1, 2), transform_multipliers=(1, 2), noise_levels=5)
        config, channels = weights.infer(state, base=blank, where=path.name)
        weights.verify(state, config, channels=channels, where=path.name)
        assert (config, channels) in [(one.model, one.data.channels) for one in PUBLISHED], path.name

        named = {name: tensor for name, tensor in state.items() if "_fn." in name}
        ours = {weights.our_name(name) for name in named}
        assert len(ours) == len(named) and not {name for name in ours if "_fn" in name}
        assert {name for name in named if weights.official_name(weights.our_name(name)) != name} == set()
        assert state.keys() - named.keys() == weights.tables(weights.named("cosine", 2)).keys()


@pytest.mark.parametrize("folder", folders("rvd-shapes"))
def test_any_other_shape_is_refused(folder):
    path = min(folder.glob("*.json"))
    shapes = json.loads(path.read_text())
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config, channels = weights.infer(state, base=RVDConfig(), where=path.name)
    for name in list(state)[:: len(state) // 6]:
        spoiled = state | {name: torch.empty((*shapes[name], 2), device="meta")}
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            weights.verify(spoiled, config, channels=channels, where=path.name)
