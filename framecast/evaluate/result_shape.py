# SPDX-License-Identifier: Apache-2.0
"""What `result.json` must look like for `compare` and `report` to read it: a shape, and the first place that strays.

A file that people have edited, or that another program wrote, is told what is wrong where, before anything is computed.
"""

from __future__ import annotations

from typing import Any

# A type or several; a list: all entries are so, or, where it has several, exactly those; a dict: what lies under each
# key, `?` behind keys that may be missing, `*` for all other keys.
_NUMBER = (int, float, type(None))
_NUMBERS = [_NUMBER]
_INTERVAL = {"mean": _NUMBER, "low?": _NUMBER, "high?": _NUMBER, "units?": _NUMBER, "count?": _NUMBER}
_SET = {"value": _NUMBER, "low?": _NUMBER, "high?": _NUMBER, "n_real?": _NUMBER, "n_fake?": _NUMBER, "floor?": _NUMBER}
_FORECAST = {
    "name": str,
    "samples?": _NUMBER,
    "seconds?": _NUMBER,
    "scores?": {"*": _INTERVAL},
    "minus?": {"*": _INTERVAL},
    "sets?": {"*": _SET},
    "by_frame?": {"*": {"frames": [int], "mean": _NUMBERS, "sd?": _NUMBERS}},
    "by_motion?": {"motion": [_NUMBER] * 3, "*": [_NUMBER] * 3},
    "ranks?": [(int, float)],
    "spread_skill?": {"frames": [int], "spread": _NUMBERS, "skill": _NUMBERS},
}
_PUBLISHED = {"metric": str, "method": str, "value?": _NUMBER, "spread?": _NUMBER}
RESULT: dict[str, Any] = {
    "protocol": str,
    "deviations": [str],
    "model_deviations?": [str],
    "assumed?": [str],
    "is_not?": [str],
    "settings": {"name?": str, "*": object},
    "weights?": {"*": (dict, type(None))},
    "data": {"windows?": (int, type(None)), "sets?": {"*": dict}, "*": object},
    "model": dict,
    "versions?": dict,
    "published?": [_PUBLISHED],
    "cases": [{"name": str, "forecasts": [_FORECAST]}],
}
_WORDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "names with values"}


def astray(value: Any, shape: Any = RESULT, where: str = "") -> str:
    """The first place of a value that is not of a shape, in words; empty where all is as it should be.

    Args:
        value: as JSON gave it.
        shape: a type, a tuple of types, or a list or dict of shapes, see above.
        where: the value's own place, for the words.

    Example:
        >>> astray({"cases": [3]}, {"cases": [{"name": str}]})
        'cases[0] is 3, expected names with values'
    """
    kinds = shape if isinstance(shape, tuple) else (shape if isinstance(shape, type) else type(shape),)
    if not isinstance(value, kinds) or (isinstance(value, bool) and object not in kinds):
        words = "a number" if float in kinds else _WORDS[kinds[0]]
        return f"{where or 'all of it'} is {_short(value)}, expected {words}"
    if isinstance(shape, dict):
        return _astray_names(value, shape, where)
    if isinstance(shape, list):
        if len(shape) > 1 and len(value) != len(shape):
            return f"{where} has length {len(value)}, expected {len(shape)}"
        told = (astray(entry, shape[0], f"{where}[{i}]") for i, entry in enumerate(value))
        return next(filter(None, told), "")
    return ""


def _astray_names(value: dict[str, Any], shape: dict[str, Any], where: str) -> str:
    lacking = [key for key in shape if not key.endswith(("?", "*")) and key not in value]
    if lacking:
        return f"{where or 'it'} lacks {', '.join(lacking)}"
    for key, entry in value.items():
        own = shape.get(key, shape.get(f"{key}?", shape.get("*", object)))
        if told := astray(entry, own, f"{where}.{key}" if where else key):
            return told
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
