"""Every error that prefect_tpu raises. All of them survive pickling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_tpu.core.text import clean, clean_all

if TYPE_CHECKING:
    from prefect_tpu.core.verdict import Verdict


class TpuError(Exception):
    """Base of all errors of prefect_tpu. Their texts are clean: Prefect can record a run that ends with one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*clean_all(args))


class ConfigurationError(TpuError, ValueError):
    """Something that the user wrote cannot work; nothing was reserved."""


class AlreadyInitializedError(ConfigurationError, RuntimeError):
    """The function wants to start JAX's distributed runtime, which is up; JAX raises a RuntimeError for it, too."""


class PreloadError(ConfigurationError):
    """A module of `preload` cannot be imported on a host."""


class NotInGangError(ConfigurationError):
    """Something of `prefect_tpu.runtime` was used outside a gang."""


class TopologyError(ConfigurationError):
    """An accelerator type or topology that does not exist, or does not divide into hosts."""


class ProvisioningError(TpuError):
    """Slices could not be brought up."""


class SliceUnavailableError(TpuError):
    """Not enough free, intact slices before `lease_timeout_seconds`."""


class TransferError(TpuError):
    """Arguments or a result could not be moved between the driver and a host: no room for them."""


class AttemptError(TpuError):
    """One attempt of a gang failed; `verdict` says why, and what it was charged to."""

    def __init__(self, message: str, verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.verdict)


class SlicePreemptedError(AttemptError):
    """A slice was taken away."""


class HostLostError(AttemptError):
    """A host, or the agent on it, could not be reached any more."""


class HostProcessError(AttemptError):
    """A host process ended without a result: killed, crashed, or could not start."""


class DeviceBusyError(HostProcessError):
    """Another process has the accelerator of a host, and did not let go in time."""


class HangError(AttemptError):
    """No heartbeat or no progress for too long."""


class GangTimeoutError(AttemptError, TimeoutError):
    """The attempt ran longer than the task's `timeout_seconds`."""


class RetriesExhaustedError(TpuError):
    """A budget other than the task's own `retries` is spent; `reports` has every attempt."""

    def __init__(self, message: str, reports: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.reports = tuple(reports)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.reports)


class GangCancelledError(TpuError):
    """The gang was cancelled; every host process is dead and its slices are free."""


class RemoteTraceback(Exception):  # noqa: N818 - a carrier of text, not an error of its own
    """The traceback of an exception as it was on the host; set as `__cause__`."""

    def __init__(self, text: str) -> None:
        self.text = clean(text)
        super().__init__(self.text)

    def __str__(self) -> str:
        return "\n" + self.text
