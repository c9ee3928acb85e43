# SPDX-License-Identifier: Apache-2.0
"""Fixtures of this folder."""

from tests.metrics.conftest import unchecked

__all__ = ["unchecked"]
