# SPDX-License-Identifier: Apache-2.0
"""Reads weight files of the official RVD code (revision 309fbe0) and proves that they fit the networks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PARTS = {"history_fn": "context", "transform_fn": "transform", "denoise_fn": "denoiser"}
_RES = r"\b(block1\.block\.0|block1\.block\.1|block2\.block\.0|block2\.block\.1|res_conv|mlp\.1)\."
_BLOCKS = {
    "block1.block.0": "block_1.conv",
    "block1.block.1": "block_1.norm",
    "block2.block.0": "block_2.conv",
    "block2.block.1": "block_2.norm",
    "res_conv": "skip",
    "mlp.1": "step",
}
_RULES = [
    (r"^denoise_fn\.time_mlp\.1\.", "denoiser.time.0."),
    (r"^denoise_fn\.time_mlp\.3\.", "denoiser.time.2."),
    (r"^denoise_fn\.mid_block(\d)\.", r"denoiser.middle_\1."),
    (r"^denoise_fn\.mid_attn\.", "denoiser.middle_attention."),
    (r"^denoise_fn\.final_conv\.0\.block\.0\.", "denoiser.last.conv."),
    (r"^denoise_fn\.final_conv\.0\.block\.1\.", "denoiser.last.norm."),
    (r"^denoise_fn\.final_conv\.1\.", "denoiser.head."),
    (r"^denoise_fn\.(downs|ups)\.(\d+)\.0\.", r"denoiser.\1.\2.first."),
    (r"^denoise_fn\.(downs|ups)\.(\d+)\.1\.", r"denoiser.\1.\2.second."),
    (r"^denoise_fn\.(downs|ups)\.(\d+)\.2\.", r"denoiser.\1.\2.attention."),
    (r"^denoise_fn\.downs\.(\d+)\.3\.conv\.", r"denoiser.downs.\1.down."),
    (r"^denoise_fn\.ups\.(\d+)\.3\.conv\.", r"denoiser.ups.\1.up."),
    (r"^history_fn\.", "context."),
    (r"^transform_fn\.", "transform."),
    (r"^(context|transform)\.downs\.(\d+)\.0\.", r"\1.levels.\2.block."),
    (r"^(context|transform)\.downs\.(\d+)\.1\.conv_gates\.0\.", r"\1.levels.\2.gru.gates."),
    (r"^(context|transform)\.downs\.(\d+)\.1\.conv_cans\.0\.", r"\1.levels.\2.gru.candidate."),
    (r"^(context|transform)\.downs\.(\d+)\.2\.conv\.", r"\1.levels.\2.down."),
    (r"^transform\.ups\.(\d+)\.0\.", r"transform.ups.\1.block."),
    (r"^transform\.ups\.(\d+)\.1\.conv\.", r"transform.ups.\1.up."),
    (r"^transform\.mu\.", "transform.head."),
    (r"\.fn\.fn\.to_", ".to_"),
    (r"\.fn\.norm\.g$", ".norm.weight"),
    (r"\.fn\.norm\.b$", ".norm.bias"),
]


def our_name(official: str) -> str:
    """`<part>.<parameter>` of an official parameter name."""
    name = re.sub(_RES, lambda found: _BLOCKS[found[1]] + ".", official)
    for pattern, ours in _RULES:
        name = re.sub(pattern, ours, name)
    return name
