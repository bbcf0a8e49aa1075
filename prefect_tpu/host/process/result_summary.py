"""A short text for a result, for people who look at a table of slices."""

from __future__ import annotations

import reprlib
from typing import Any

MAX_SUMMARY_CHARS = 200

_short = reprlib.Repr()
_short.maxstring = _short.maxother = MAX_SUMMARY_CHARS - 20
_short.maxlist = _short.maxtuple = _short.maxdict = 8


def summarize(result: Any) -> str:
    """At most `MAX_SUMMARY_CHARS`; arrays by dtype and shape, scalars by value. Never raises."""
    try:
        return _describe(result)[:MAX_SUMMARY_CHARS]
    except Exception:  # noqa: BLE001 - the user's __repr__
        return type(result).__qualname__


def _describe(result: Any) -> str:
    shape, dtype = getattr(result, "shape", None), getattr(result, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return str(result.item()) if shape == () else f"{dtype}{list(shape)}"
    if type(result) in (list, tuple) and any(hasattr(one, "dtype") for one in result[:8]):
        shown = ", ".join(_describe(one) for one in result[:8])
        return f"[{shown}{', ...' if len(result) > 8 else ''}]"
    if type(result) is dict and any(hasattr(one, "dtype") for one in result.values()):
        shown = ", ".join(f"{key!r}: {_describe(result[key])}" for key in list(result)[:8])
        return f"{{{shown}{', ...' if len(result) > 8 else ''}}}"
    return _short.repr(result)
