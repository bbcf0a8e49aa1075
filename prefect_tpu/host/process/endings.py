"""The end of a host process as Python's own: threads are joined, exit hooks run; what holds it up has a name."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

WORD_SECONDS = 5.0
"""After which the end says what it waits for."""

log = logging.getLogger("prefect_tpu")


@dataclass(slots=True, eq=False)
class PythonEnd:
    """`run` on the main thread; the others from any.

    Attributes:
        began_at: on the monotonic clock; None before the function has ended.
    """

    began_at: float | None = None
    _in_hooks: bool = False
    _over: bool = False
    _said: bool = False

    def run(self) -> None:
        """Join the threads that are no daemons and run every exit hook, as Python does before it ends.

        What fails meanwhile is told as a warning, beside the traceback that Python itself prints.
        """
        self.began_at = time.monotonic()
        threading.excepthook = _told(threading.excepthook, _of_thread)
        sys.unraisablehook = _told(sys.unraisablehook, self._of_hook)
        threading._shutdown()  # type: ignore[attr-defined]
        self._in_hooks = True
        atexit._run_exitfuncs()
        self._over = True

    def say_what_it_waits_for(self) -> None:
        """Once, when it has taken a while."""
        if self._said or self._over or self.began_at is None or time.monotonic() < self.began_at + WORD_SECONDS:
            return
        self._said = True
        log.info("the function has ended; waits for %s", self.what_runs() or "its exit hooks")

    def what_runs(self) -> str:
        """What has not ended, each with the line that it is at; "" if there is nothing."""
        frames, main = sys._current_frames(), threading.main_thread()
        found = [
            f"thread {one.name!r} at {_where(frames.get(one.ident or 0))}"
            for one in threading.enumerate()
            if not one.daemon and one is not main and one is not threading.current_thread()
        ]
        if self._in_hooks and not self._over:
            found.append(f"an exit hook at {_where(frames.get(main.ident or 0))}")
        return ", ".join(found)

    def _of_hook(self, args: Any) -> str:
        """Python calls it for this and that that nobody can catch; only hooks are the function's end."""
        if not self._in_hooks or self._over or "atexit" not in (args.err_msg or ""):
            return ""
        name = getattr(args.object, "__qualname__", None) or type(args.object).__name__
        return f"exit hook {name} failed: {_words(args.exc_value or args.exc_type)}"


def _of_thread(args: Any) -> str:
    if args.exc_type is SystemExit:
        return ""
    name = args.thread.name if args.thread is not None else "?"
    return f"thread {name!r} failed after the function had ended: {_words(args.exc_value or args.exc_type)}"


def _told(before: Callable[[Any], object], words: Callable[[Any], str]) -> Callable[[Any], None]:
    def hook(args: Any) -> None:
        before(args)
        text = words(args)
        if text:
            log.warning("%s", text)

    return hook


def _words(error: Any) -> str:
    return error.__name__ if isinstance(error, type) else f"{type(error).__name__}: {error}"


def _where(frame: FrameType | None) -> str:
    if frame is None:
        return "a place not known"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
