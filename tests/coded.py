"""A scorer of codes in a page: signs of blocks in two levels, each as likely to stay as a number says.

A code of the bottom level is whether the mean of two frames of a quarter of the picture is above 0, one of the top
level that of four whole frames. A code is what it was in the step before with probability `stays`.
"""

import math
from typing import ClassVar

import torch

from framecast.system import Window


class Signs:
    of, context, frames, unit = "codes", 4, 8, 4
    uniform: ClassVar = {"top": 1.0, "bottom": 1.0}
    notes = ("a step is four frames.",)

    def __init__(self, net=None, stays=0.75):
        self.net, self.stays = net, stays

    def windows(self, known):
        given = sum(known)
        starts = range(given - self.context, len(known) - self.context, self.frames - self.context)
        return [Window(tuple(range(i, i + 8)), (True,) * 4 + (False,) * 4) for i in starts]

    def calls(self, windows):
        return len(windows)

    def bits(self, frames, known):
        given = int(known.sum())
        for _ in self.windows(known.tolist()):
            if self.net is not None:
                self.net(frames, known)
        found = {}
        for level, (step, side) in {"top": (4, 1), "bottom": (2, 2)}.items():
            lead = given % step  # blocks end with the given frames
            blocks = frames[:, lead:].unflatten(1, (-1, step)).mean((2, 3)).double()
            blocks = torch.nn.functional.adaptive_avg_pool2d(blocks, side)
            stayed = (blocks[:, 1:] > 0) == (blocks[:, :-1] > 0)
            new = stayed[:, given // step - 1 :]
            found[level] = torch.where(new, -math.log2(self.stays), -math.log2(1 - self.stays)).double()
        return found
