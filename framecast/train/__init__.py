# SPDX-License-Identifier: Apache-2.0
"""Training: any stage of any system on a folder of clips.

Read `run.py` first (a run and its folder), then `plan.py` (what is checked before) and `loop.py` (the loop itself).
"""

from framecast.train.loop import Diverged
from framecast.train.plan import Job, Plan, prepare, read_config
from framecast.train.run import Progress, Silent, Stopped, Trained

__all__ = ["Diverged", "Job", "Plan", "Progress", "Silent", "Stopped", "Trained", "prepare", "read_config"]
