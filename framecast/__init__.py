# SPDX-License-Identifier: Apache-2.0
"""framecast: given some frames of a clip, draw the others."""

__version__ = "0.1.0"
