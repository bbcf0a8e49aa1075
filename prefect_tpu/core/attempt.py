"""When a running attempt is over. Asked once a round; no I/O, and the clock is the caller's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from prefect_tpu.core.kinds import Kind


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One host process in one round.

    Attributes:
        returned: its function has returned.
        entered: its function has been entered.
        failed: it has raised, ended or been lost.
        failed_clearly: in a way that is no consequence of what happened elsewhere.
        left: by `runtime.leave()` or at a resize point; it waits for the others to do so.
        left_to_resize: at a resize point.
        gone: its slice had a notice, and has been taken away or ought to be.
    """

    returned: bool = False
    entered: bool = False
    failed: bool = False
    failed_clearly: bool = False
    left: bool = False
    left_to_resize: bool = False
    gone: bool = False


@dataclass(frozen=True, slots=True)
class OutsideFacts:
    """What comes from outside in one round.

    Attributes:
        cancelled: somebody wants it to end.
        draining: a slice is about to be taken away.
        hung: no host makes progress any more.
    """

    cancelled: bool = False
    draining: bool = False
    hung: bool = False


@dataclass(slots=True)
class Watch:
    """Decides when an attempt is over that was launched at `launched_at`.

    Attributes:
        timeout_seconds: of the task, from the launch; None for no limit.
        launch_timeout_seconds: within which every host must have entered the function.
        leave_timeout_seconds: how long others may still save once the first has left, or a slice has gone after
            a notice.
        failure_window_seconds: how long the others are heard after the first failure.
        clear_failure_window_seconds: the same after one that is no consequence of another.
        entered_at: when every host had entered the function; None before.
        late: indices of hosts that this round has found late. To the rounds that follow they are to have failed.
    """

    launched_at: float
    timeout_seconds: float | None
    launch_timeout_seconds: float
    leave_timeout_seconds: float
    failure_window_seconds: float
    clear_failure_window_seconds: float
    entered_at: float | None = field(init=False, default=None)
    late: tuple[int, ...] = field(init=False, default=())
    _window_ends: float = field(init=False, default=math.inf)
    _leave_ends: float = field(init=False, default=math.inf)
    _clear: bool = field(init=False, default=False)

    def next(self, hosts: Sequence[HostFacts], outside: OutsideFacts, now: float) -> Kind | Literal["judge"] | None:
        """What the attempt ends with: a kind, or "judge" if the evidence decides; None: it goes on."""
        self.late = ()
        if all(host.returned for host in hosts):
            return Kind.SUCCEEDED
        if outside.cancelled:
            return Kind.CANCELLED
        if outside.hung:
            return "judge"
        if any(host.gone for host in hosts):
            return None if self._may_save(hosts, now) else "judge"
        if self.timeout_seconds and now >= self.launched_at + self.timeout_seconds:
            return Kind.TIMED_OUT
        if self.entered_at is None:
            if all(host.entered for host in hosts):
                self.entered_at = now
            elif now >= self.launched_at + self.launch_timeout_seconds:
                self.late = tuple(index for index, host in enumerate(hosts) if not host.entered)
                hosts = [host if host.entered else replace(host, failed=True, failed_clearly=True) for host in hosts]
        failed = [host for host in hosts if host.failed]
        if failed and self._heard_enough(hosts, failed, outside, now):
            return "judge"
        return None

    def _heard_enough(
        self, hosts: Sequence[HostFacts], failed: Sequence[HostFacts], outside: OutsideFacts, now: float
    ) -> bool:
        """Whether those that have not failed have had their time to say why, or to leave as well."""
        leaves = all(host.left for host in failed) and (outside.draining or any(host.left_to_resize for host in failed))
        if leaves:
            self._leave_ends = min(self._leave_ends, now + self.leave_timeout_seconds)
        else:
            self._window_ends = min(self._window_ends, now + self.failure_window_seconds)
        if not leaves and not self._clear and any(host.failed_clearly for host in failed):
            self._clear = True
            self._window_ends = min(self._window_ends, now + self.clear_failure_window_seconds)
        ends = min(self._leave_ends, self._window_ends)
        return now >= ends or all(host.failed or host.returned for host in hosts)

    def _may_save(self, hosts: Sequence[HostFacts], now: float) -> bool:
        """Whether hosts of slices that stay still run the function, and may."""
        self._leave_ends = min(self._leave_ends, now + self.leave_timeout_seconds)
        runs = any(host.entered and not (host.gone or host.failed or host.returned) for host in hosts)
        return runs and now < self._leave_ends
