"""One verdict for each attempt: what happened, whose fault, what it is charged to, what to do."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.jax_names import MEET_FIRST, NO_FIRST_COLLECTIVE
from prefect_tpu.core.kinds import KINDS, Charge, Kind
from prefect_tpu.core.messages import Raised
from prefect_tpu.core.stages import STAGES
from prefect_tpu.core.text import cut


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an attempt ended. Its texts are clean and no longer than a line may be, whatever they were made of.

    Attributes:
        kind: what it was.
        cause: one sentence that names slice and host.
        resolution: what a person can do.
        culprits: process ids at the root of it.
        collateral: process ids that failed only because of the culprits.
    """

    kind: Kind
    cause: str = ""
    resolution: str = ""
    culprits: tuple[int, ...] = ()
    collateral: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cause", cut(self.cause))
        object.__setattr__(self, "resolution", cut(self.resolution))

    @property
    def charge(self) -> Charge:
        return KINDS[self.kind].charge


def judge(outcome: Kind | None, evidence: Sequence[HostEvidence], *, preemptible: bool = False) -> Verdict:
    """The verdict of an attempt. The only place that says whether it has succeeded.

    Args:
        outcome: SUCCEEDED: every result that is wanted is here, whatever became of a host after that; CANCELLED or
            TIMED_OUT: it was ended from outside; None: the evidence decides, and it is no success.
        evidence: one entry per host process, in any order.
        preemptible: see `decide`.
    """
    if outcome is Kind.SUCCEEDED:
        return Verdict(Kind.SUCCEEDED)
    if outcome is Kind.CANCELLED:
        return Verdict(Kind.CANCELLED, "cancelled")
    if outcome is Kind.TIMED_OUT:
        return Verdict(Kind.TIMED_OUT, "ran longer than timeout_seconds")
    verdict = decide(evidence, preemptible=preemptible)
    if verdict.kind is Kind.SUCCEEDED:  # all returned while it was being ended: too late for their results
        return decide([replace(one, returned=False) for one in evidence], preemptible=preemptible)
    return verdict


def decide(evidence: Sequence[HostEvidence], *, preemptible: bool = False) -> Verdict:
    """Join the evidence of every host of an attempt into one verdict.

    Loss from outside explains errors inside, never the other way round; of errors inside, what only JAX
    raises when a peer is gone is never the root if there is another. Order of arrival plays no part, and
    neither does the text of an exception.

    Args:
        evidence: one entry per host process, in any order.
        preemptible: the slices can be taken away, so a host that vanishes counts as preempted. Without it,
            only a slice of which every host has vanished does. An agent that merely does not answer never does.
    """
    hosts = sorted(evidence, key=lambda one: one.process_id)
    if all(one.returned for one in hosts):
        return Verdict(Kind.SUCCEEDED)
    gone_slices = {one.slice_index for one in hosts} - {one.slice_index for one in hosts if not one.gone}
    taken = [
        one
        for one in hosts
        if one.preempted or one.notice or (one.gone and (preemptible or one.slice_index in gone_slices))
    ]
    if taken:
        names = ", ".join(dict.fromkeys(f"slice {one.slice_index} ({one.slice_name})" for one in taken))
        said = [f"{one.label}: {one.notice}" for one in taken if one.notice]
        went = [f"{one.label} lost: {one.lost}" for one in taken if one.lost]
        return _verdict(
            Kind.PREEMPTED,
            hosts,
            taken,
            f"{names} preempted: {'; '.join([*said[:1], *went[:1]]) or f'{taken[0].label} was drained'}",
        )
    fatal = [one for one in hosts if one.raised_fatal]
    if fatal:
        raised = fatal[0].raised
        assert raised is not None
        return _verdict(
            Kind.FATAL,
            hosts,
            fatal,
            f"{fatal[0].label} failed at stage {raised.stage!r}: {raised.type_name}: {raised.message}",
            raised.advice or STAGES[raised.stage].resolution,
        )
    lost = [one for one in hosts if one.lost is not None]
    if lost:
        return _verdict(
            Kind.INFRASTRUCTURE,
            hosts,
            lost,
            f"{lost[0].label} ({lost[0].slice_name}) lost: {lost[0].lost}",
        )
    in_function = [one for one in hosts if one.raised_in_function]
    own = [one for one in in_function if not one.raised_by_peer_loss and not one.left_to_resize]
    if own:
        return _user_error(hosts, own)
    hung = [one for one in hosts if one.hung]
    if hung:
        return _verdict(
            Kind.INFRASTRUCTURE,
            hosts,
            hung,
            f"{hung[0].label} reported nothing for hang_timeout_seconds"
            + ("" if hung[0].step is None else f" after step {hung[0].step}"),
            "look at the stacks of all hosts in the logs; a host that waits for its peers is not the one to blame",
        )
    for stage, row in STAGES.items():
        if row.blames != "host":
            continue
        stopped = [one for one in hosts if one.raised is not None and one.raised.stage == stage]
        if stopped:
            raised = stopped[0].raised
            assert raised is not None
            return _verdict(
                Kind.INFRASTRUCTURE,
                hosts,
                stopped,
                f"{row.what.format(stopped[0].label)}: {raised.message}",
                raised.advice or row.resolution,
            )
    crashed = [one for one in hosts if one.crashed]
    roots = [one for one in crashed if one.signal != signal.SIGABRT] or crashed
    if roots:
        by_itself = roots[0].signal is None
        resolution = "return from the function; something in it has called os._exit, or C's exit" if by_itself else ""
        return _verdict(Kind.CRASHED_PROCESS, hosts, roots, f"{roots[0].label} {_ended_how(roots[0])}", resolution)
    if any(one.left_to_resize for one in hosts):
        return Verdict(Kind.RESIZED, "all hosts left at a resize point", KINDS[Kind.RESIZED].resolution)
    if in_function:
        return _user_error(hosts, in_function)
    starting = [one for one in hosts if one.raised is not None]
    if starting:
        raised = starting[0].raised
        assert raised is not None
        return _verdict(
            Kind.INFRASTRUCTURE,
            hosts,
            starting,
            f"{starting[0].label} could not start JAX: {raised.type_name}: {raised.message}",
            raised.advice or STAGES[raised.stage].resolution,
        )
    silent = [one for one in hosts if not one.returned]
    return _verdict(
        Kind.INFRASTRUCTURE,
        hosts,
        silent,
        f"{silent[0].label} ended and left no word why",
        "look at the host's own logs; the next attempt starts afresh",
    )


def _user_error(hosts: Sequence[HostEvidence], culprits: Sequence[HostEvidence]) -> Verdict:
    raised = culprits[0].raised
    assert raised is not None
    late = any(one.raised is not None and NO_FIRST_COLLECTIVE in one.raised.message for one in hosts)
    others = "" if len(culprits) == 1 else f" (and {len(culprits) - 1} more host{'s' if len(culprits) > 2 else ''})"
    did, resolution = _did(raised)
    cause = f"{culprits[0].label} {did}{others}{f'; {MEET_FIRST}' if late else ''}"
    return _verdict(Kind.USER_ERROR, hosts, culprits, cause, resolution)


def _did(raised: Raised) -> tuple[str, str]:
    """What the function did, and what to do about it; "" for what is said of all that functions raise."""
    if raised.left == "drain":
        return (
            "called runtime.leave() without a notice",
            "call it only while runtime.current().draining is true, or after reached_preemption_sync_point(step)",
        )
    if raised.type_name == "SystemExit":
        return (
            f"left by sys.exit({raised.message}) before its function had returned",
            "return from the function, or raise an exception; with one host the whole gang ends",
        )
    return f"raised {raised.type_name}" + (f": {raised.message}" if raised.message else ""), ""


def _verdict(
    kind: Kind, hosts: Sequence[HostEvidence], culprits: Sequence[HostEvidence], cause: str, resolution: str = ""
) -> Verdict:
    """`resolution`: "" for that of the kind."""
    guilty = tuple(one.process_id for one in culprits)
    collateral = tuple(one.process_id for one in hosts if one.process_id not in guilty and not one.returned)
    return Verdict(kind, cause, resolution or KINDS[kind].resolution, guilty, collateral)


def _ended_how(one: HostEvidence) -> str:
    if one.signal is None:
        return f"exited with code {one.exit_code} before its function returned"
    try:
        name = signal.Signals(one.signal).name
    except ValueError:
        name = f"signal {one.signal}"
    return f"was ended by {name}"
