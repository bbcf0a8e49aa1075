"""Cache keys of gang tasks: the shape of a result is part of its key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.utilities.hashing import hash_objects

if TYPE_CHECKING:
    from prefect.context import TaskRunContext
    from prefect.tasks import Task


@dataclass
class GangCachePolicy(CachePolicy):
    """Another policy's key, and the gang's shape: two slices do not answer for one.

    Attributes:
        inner: the task's own. It is given the task as the user wrote it, the user's function as its `fn`: in the task
            that runs that is what launches the gang, the same for all of them.
    """

    inner: CachePolicy | None = None
    gang_shape: Callable[[], tuple[str, ...]] = tuple
    written: Task[..., Any] | None = None

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The inner policy's key with the shape's hash appended; None where the inner one has none."""
        assert self.inner is not None
        context = task_ctx.model_copy(update={"task": self.written})
        key = self.inner.compute_key(context, inputs, flow_parameters, **kwargs)
        if key is None:
            return None
        return f"{key}-{(hash_objects(self.gang_shape()) or '')[:8]}"


def with_gang_shape(policy: Any, gang_shape: Callable[[], tuple[str, ...]], written: Task[..., Any]) -> Any:
    """`policy` with the shape in its key; what is no policy, or never caches, stays as it is.

    Args:
        policy: of the task.
        gang_shape: called when a key is computed: it may have to load a pool.
        written: the task, with the user's function as its `fn`.
    """
    if not isinstance(policy, CachePolicy) or policy == NO_CACHE or isinstance(policy, GangCachePolicy):
        return policy
    return GangCachePolicy(
        key_storage=policy.key_storage,
        isolation_level=policy.isolation_level,
        lock_manager=policy.lock_manager,
        inner=policy,
        gang_shape=gang_shape,
        written=written,
    )
