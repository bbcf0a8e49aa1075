"""Hooks of a gang's task run are called with the task that the user made, not with the copy for one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, overload

Hook = Callable[..., Any]


class HooksOf(Sequence[Hook]):
    """The hooks of a task as they are when they are called, in the place of its copy's."""

    def __init__(self, hooks: Sequence[Hook], made: Any) -> None:
        """`hooks`: the list of the task `made` itself; what is added to it later is called, too."""
        self._hooks = hooks
        self._made = made

    def __len__(self) -> int:
        return len(self._hooks)

    @overload
    def __getitem__(self, index: int) -> Hook: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hook]: ...
    def __getitem__(self, index: int | slice) -> Hook | list[Hook]:
        return list(self)[index]

    def __iter__(self) -> Iterator[Hook]:
        return (_with_task(one, self._made) for one in list(self._hooks))


def _with_task(hook: Hook, made: Any) -> Hook:
    def call(_: Any, *rest: Any) -> Any:
        return hook(made, *rest)

    # Prefect logs the name.
    named = hook.func if isinstance(hook, partial) and not hasattr(hook, "__name__") else hook
    call.__name__ = getattr(named, "__name__", type(hook).__name__)
    return call
