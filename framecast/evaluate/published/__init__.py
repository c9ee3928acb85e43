# SPDX-License-Identifier: Apache-2.0
"""The protocols of the papers, with the values that they report: a file per paper.

Where paper and released code leave a setting open, the record says what is taken. Values of other methods are those of
the paper's own tables, from whatever source these took them.
"""

from framecast.evaluate.published.pvdm import PVDM
from framecast.evaluate.published.ramvid import RAMVID
from framecast.evaluate.published.rvd import RVD
from framecast.evaluate.published.video_vqvae import VIDEO_VQVAE

PUBLISHED = (*RAMVID, *RVD, *PVDM, *VIDEO_VQVAE)
