# SPDX-License-Identifier: Apache-2.0
"""Training: any stage of any system on a folder of clips.

Read `run.py` first (a run and its folder), then `plan.py` (what is checked before) and `loop.py` (the loop itself).
The package itself can be called, see `start.py`, so that the verb and its home bear one name: `framecast.train(…)`.
"""

import sys
import types

from framecast.train.loop import Diverged
from framecast.train.plan import Job, Plan, prepare, read_config
from framecast.train.run import Progress, Silent, Stopped, Trained
from framecast.train.start import start

__all__ = ["Diverged", "Job", "Plan", "Progress", "Silent", "Stopped", "Trained", "prepare", "read_config", "start"]


class _Callable(types.ModuleType):
    __call__ = staticmethod(start)


sys.modules[__name__].__class__ = _Callable
