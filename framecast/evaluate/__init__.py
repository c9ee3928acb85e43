# SPDX-License-Identifier: Apache-2.0
"""Judging: models and stored samples by named protocols, with everything that a number needs beside it.

Read `terms.py` first (what a protocol says), then `run.py` (how it is run), `result.py` (what comes out).
The package itself can be called, see `start.py`: `framecast.evaluate(model, "smoke-lbm", data=…)`.
"""

import sys
import types

from framecast.evaluate.start import start

__all__ = ["start"]


class _Callable(types.ModuleType):
    __call__ = staticmethod(start)


sys.modules[__name__].__class__ = _Callable
