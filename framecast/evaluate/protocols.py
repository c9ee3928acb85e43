# SPDX-License-Identifier: Apache-2.0
"""Protocols by name; their words are defined in `terms.py`, the windows they speak of are cut in `windows.py`."""

from __future__ import annotations

from framecast.evaluate.open_sets import OPEN_SETS
from framecast.evaluate.published import PUBLISHED
from framecast.evaluate.terms import (
    FRECHET_GROUPS,
    METRIC_GROUPS,
    Case,
    Cut,
    FrechetSettings,
    InceptionSettings,
    Protocol,
    Published,
)
from framecast.experiment import nearest

__all__ = [
    "FRECHET_GROUPS", "METRIC_GROUPS", "PROTOCOLS", "Case", "Cut", "FrechetSettings", "InceptionSettings", "Protocol",
    "Published", "protocol",
]  # fmt: skip

PROTOCOLS: dict[str, Protocol] = {record.name: record for record in (*OPEN_SETS, *PUBLISHED)}


def protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in PROTOCOLS:
        guess = nearest(name, PROTOCOLS)
        raise ValueError(f"there is no protocol {name!r}.{guess} All of them: framecast evaluate --protocol list.")
    return PROTOCOLS[name]
