"""What is known about one host process when its attempt has ended."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefect_tpu.core.messages import Raised
from prefect_tpu.core.stages import STAGES
from prefect_tpu.core.text import CleanText, cut

MAX_KEPT_CHARS = 4_000
"""In the ledger: of a traceback, and of the last lines of a culprit."""
MAX_KEPT_MESSAGE_CHARS = 1_000
"""In the ledger, beside the verdict, which has the whole message of the first."""

JAX_RUNTIME_ERRORS = frozenset({"XlaRuntimeError", "JaxRuntimeError"})
"""What JAX raises on a host whose peers are gone. It says nothing about who was first."""


@dataclass(frozen=True, slots=True)
class HostEvidence(CleanText):
    """Everything seen of one host process, from inside and from outside.

    Attributes:
        process_id: global, slice-major.
        slice_index, host_index, slice_name: where it ran.
        returned: the function returned and its result is in the driver.
        raised: what was raised on the host, and where.
        exit_code: of the process, None if it was ended by a signal or is not known.
        signal: that ended it, unless it was ours.
        stopped_by_us: the stop barrier ended it; its own end says nothing.
        lost: why the host cannot be reached any more, None if it can.
        gone: the machine itself is gone, not only our agent on it.
        preempted: Ray, the cloud or the host itself said that it was taken away.
        notice: what said that it would be taken away, "" if nothing did.
        hung: it was ended because it reported nothing any more.
        first_step: the first step that it reported, None if it reported none: what the attempt went on from.
        step: the highest step that it reported.
        restarts: it reported a step below the one before: its steps begin anew now and then.
        last_stderr: the last lines that it wrote.
    """

    process_id: int
    slice_index: int
    host_index: int
    slice_name: str
    returned: bool = False
    raised: Raised | None = None
    exit_code: int | None = None
    signal: int | None = None
    stopped_by_us: bool = False
    lost: str | None = None
    gone: bool = False
    preempted: bool = False
    notice: str = ""
    hung: bool = False
    first_step: int | None = None
    step: int | None = None
    restarts: bool = False
    last_stderr: tuple[str, ...] = ()

    def slim(self, *, culprit: bool) -> HostEvidence:
        """Without what is large: for ledgers that keep every attempt of a long run.

        Args:
            culprit: it is at the root of how the attempt ended; of others nobody asks for the last lines.
        """
        raised = self.raised
        if raised is not None:
            raised = replace(
                raised,
                message=cut(raised.message, limit=MAX_KEPT_MESSAGE_CHARS),
                traceback=raised.traceback[-MAX_KEPT_CHARS:],
                pickled=None,
            )
        return replace(self, raised=raised, last_stderr=_last(self.last_stderr) if culprit else ())

    @property
    def label(self) -> str:
        return f"slice {self.slice_index} host {self.host_index}"

    @property
    def raised_in_function(self) -> bool:
        return self.raised is not None and STAGES[self.raised.stage].blames == "function"

    @property
    def raised_by_peer_loss(self) -> bool:
        """Raised something that JAX raises when another host is gone, or something of its own because of that."""
        if self.raised is None:
            return False
        names = (self.raised.type_name, *self.raised.cause_types)
        return any(name.rpartition(".")[2] in JAX_RUNTIME_ERRORS for name in names)

    @property
    def left_to_resize(self) -> bool:
        """Left at a `runtime.resize_point()`, after it had saved."""
        return self.raised is not None and self.raised.left == "resize"

    @property
    def raised_fatal(self) -> bool:
        """Failed in a way that no repetition mends: cannot import, cannot unpickle, cannot ship back."""
        return self.raised is not None and STAGES[self.raised.stage].blames == "setup"

    @property
    def crashed(self) -> bool:
        """The process ended by itself without a word."""
        return (
            not self.returned
            and self.raised is None
            and self.lost is None
            and not self.stopped_by_us
            and (self.signal is not None or self.exit_code is not None)
        )


def _last(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The last of them, as many as have room; of the very last at least the beginning."""
    kept: list[str] = []
    room = MAX_KEPT_CHARS
    for line in reversed(lines):
        if kept and len(line) > room:
            break
        kept.append(line[:room])
        room -= len(line)
    return tuple(reversed(kept))
