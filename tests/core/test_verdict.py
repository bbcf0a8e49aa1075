"""One verdict for each attempt, from types and evidence."""

from __future__ import annotations

import random
import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_tpu.core.evidence import HostEvidence
from prefect_tpu.core.kinds import Kind
from prefect_tpu.core.messages import Raised, Stage
from prefect_tpu.core.retry import Limits, Spent, decide_retry
from prefect_tpu.core.verdict import Verdict, decide, judge


def host(process_id: int, **fields: object) -> HostEvidence:
    return HostEvidence(process_id, process_id // 2, process_id % 2, f"slice-{process_id // 2}", **fields)  # type: ignore[arg-type]


def raised(type_name: str = "ValueError", message: str = "x", stage: Stage = "function") -> Raised:
    return Raised(stage, type_name, message, "")


PEER_LOSS = raised("jax.errors.JaxRuntimeError", "Socket closed")


def test_all_returned_is_success() -> None:
    """Success is everybody, and it is charged to nothing."""
    verdict = decide([host(i, returned=True) for i in range(4)])
    assert (verdict.kind, verdict.charge) == (Kind.SUCCEEDED, "nothing")


def test_advice_that_comes_with_what_was_raised_is_the_verdicts() -> None:
    """In place of what is said of its stage, not beside it."""
    own = replace(raised("ConfigurationError", "no", "result"), advice="return the value")
    assert decide([host(0, raised=own)]).resolution == "return the value"
    assert "return something that pickles" in decide([host(0, raised=raised("E", "no", "result"))]).resolution


def test_a_lost_slice_explains_the_survivors_errors() -> None:
    """A preempted slice and "Socket closed" elsewhere is one preemption, the survivors collateral."""
    verdict = decide(
        [
            host(0, raised=PEER_LOSS),
            host(1, signal=signal.SIGABRT),
            host(2, lost="its agent is gone", gone=True, preempted=True),
            host(3, lost="its agent is gone", gone=True),
        ]
    )
    assert verdict.kind is Kind.PREEMPTED
    assert verdict.charge == "preemptions"
    assert verdict.culprits == (2, 3)
    assert verdict.collateral == (0, 1)
    assert "slice 1 (slice-1)" in verdict.cause


def test_hosts_that_came_too_late_to_a_first_collective_are_told_of_the_limit() -> None:
    """It is the function's own error, and the verdict says what to do; other errors of JAX are not taken for it."""
    late = "UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue() timed out"
    errors = [host(i, raised=raised("jax.errors.JaxRuntimeError", late)) for i in range(2)]
    verdict = decide(errors)
    assert verdict.kind is Kind.USER_ERROR
    assert "within 30 s of each other" in verdict.cause
    assert "sync_global_devices" in verdict.cause
    assert "30 s" not in decide([host(i, raised=PEER_LOSS) for i in range(2)]).cause


def test_a_slice_of_which_every_host_has_gone_is_preempted() -> None:
    """Even without a word from anybody."""
    verdict = decide([host(0), host(1), host(2, lost="x", gone=True), host(3, lost="x", gone=True)])
    assert (verdict.kind, verdict.culprits) == (Kind.PREEMPTED, (2, 3))


def test_agents_that_do_not_answer_on_hosts_that_live_are_infrastructure() -> None:
    """Our own agents dying on every host of a slice is not a preemption: it must not be retried for ever."""
    verdict = decide([host(0), host(1), host(2, lost="its agent is gone"), host(3, lost="its agent is gone")])
    assert (verdict.kind, verdict.culprits) == (Kind.INFRASTRUCTURE, (2, 3))


@pytest.mark.parametrize(("preemptible", "kind"), [(True, Kind.PREEMPTED), (False, Kind.INFRASTRUCTURE)])
def test_one_host_that_has_gone(preemptible: bool, kind: Kind) -> None:
    """Of a preemptible slice it is a preemption."""
    hosts = [host(0), host(1), host(2, lost="its agent is gone", gone=True), host(3, stopped_by_us=True)]
    assert decide(hosts, preemptible=preemptible).kind is kind


def test_one_lost_host_of_a_slice_that_cannot_be_preempted_is_infrastructure() -> None:
    """Half a slice gone without a notice."""
    verdict = decide([host(0), host(1), host(2, lost="its agent is gone"), host(3, stopped_by_us=True)])
    assert (verdict.kind, verdict.culprits) == (Kind.INFRASTRUCTURE, (2,))


def test_a_user_error_explains_the_survivors_aborts() -> None:
    """The function's own exception is the root; JAX's complaints and aborts are collateral."""
    verdict = decide([host(0, signal=signal.SIGABRT), host(1, raised=raised()), host(2, raised=PEER_LOSS), host(3)])
    assert (verdict.kind, verdict.culprits, verdict.charge) == (Kind.USER_ERROR, (1,), "failures")
    assert verdict.collateral == (0, 2, 3)


def test_the_text_of_an_exception_decides_nothing() -> None:
    """A ValueError that says "preempted" is a ValueError."""
    verdict = decide([host(0, raised=raised(message="preempted, Socket closed")), host(1, returned=True)])
    assert verdict.kind is Kind.USER_ERROR


def test_only_jax_errors_are_the_functions_own() -> None:
    """If every host raises what JAX raises, it is the function's failure, charged once."""
    verdict = decide([host(i, raised=PEER_LOSS) for i in range(4)])
    assert (verdict.kind, verdict.culprits) == (Kind.USER_ERROR, (0, 1, 2, 3))


def test_a_segfault_explains_the_survivors_aborts() -> None:
    """Of processes that ended without a word, an abort is never the root if there is another."""
    verdict = decide([host(0, signal=signal.SIGABRT), host(1, signal=signal.SIGSEGV)])
    assert (verdict.kind, verdict.culprits) == (Kind.CRASHED_PROCESS, (1,))
    assert "SIGSEGV" in verdict.cause


def test_exit_without_a_word_is_a_crash() -> None:
    """os._exit(3) names the code."""
    verdict = decide([host(0, exit_code=3), host(1, stopped_by_us=True, signal=9)])
    assert verdict.kind is Kind.CRASHED_PROCESS
    assert "code 3" in verdict.cause


@pytest.mark.parametrize(("message", "said"), [("4", "sys.exit(4)"), ("", "sys.exit()"), ("bye", "sys.exit(bye)")])
def test_who_leaves_by_sys_exit_is_named_with_the_code(message: str, said: str) -> None:
    """Also with code 0: the function has not returned."""
    verdict = decide([host(0, returned=True), host(1, raised=raised("SystemExit", message))])
    assert (verdict.kind, verdict.culprits) == (Kind.USER_ERROR, (1,))
    assert verdict.cause == f"slice 0 host 1 left by {said} before its function had returned"
    assert "return" in verdict.resolution


def test_leaving_without_a_notice_is_told_as_that() -> None:
    left = Raised("function", "prefect_tpu.runtime.Left", "left, as a host is about to be taken away", "", left="drain")
    verdict = decide([host(0, raised=left)])
    assert verdict.kind is Kind.USER_ERROR
    assert "called runtime.leave() without a notice" in verdict.cause
    assert "draining" in verdict.resolution


def test_an_exception_without_a_text_is_told_without_a_colon() -> None:
    assert decide([host(0, raised=raised("KeyboardInterrupt", ""))]).cause == "slice 0 host 0 raised KeyboardInterrupt"


def test_a_notice_makes_what_follows_a_preemption() -> None:
    """Drained hosts are the culprits, whatever the function raised meanwhile; who returned everywhere has succeeded."""
    notice = "Ray drains it, notice 30 s"
    hosts = [host(0, raised=raised()), host(1, stopped_by_us=True), host(2, notice=notice), host(3, notice=notice)]
    verdict = decide(hosts)
    assert (verdict.kind, verdict.culprits, verdict.collateral) == (Kind.PREEMPTED, (2, 3), (0, 1))
    assert notice in verdict.cause
    assert decide([host(i, returned=True, notice=notice) for i in range(4)]).kind is Kind.SUCCEEDED


def test_what_is_raised_because_of_jax_is_no_error_of_its_own() -> None:
    """A wrapper around "Socket closed" is collateral, too, by the types that it came from."""
    wrapped = Raised("function", "RuntimeError", "training failed", "", cause_types=("jax.errors.JaxRuntimeError",))
    verdict = decide([host(0, raised=wrapped), host(1, raised=raised("KeyError"))])
    assert (verdict.kind, verdict.culprits) == (Kind.USER_ERROR, (1,))
    verdict = decide([host(0, raised=wrapped), host(1, signal=signal.SIGKILL)])
    assert (verdict.kind, verdict.culprits) == (Kind.CRASHED_PROCESS, (1,))


def test_a_hang_is_infrastructure() -> None:
    """The hosts that are furthest behind are named, with their step; an own error elsewhere explains it better."""
    verdict = decide([host(0, stopped_by_us=True), host(1, hung=True, step=7, stopped_by_us=True)])
    assert (verdict.kind, verdict.culprits) == (Kind.INFRASTRUCTURE, (1,))
    assert "slice 0 host 1 reported nothing for hang_timeout_seconds after step 7" in verdict.cause
    assert decide([host(0, raised=raised()), host(1, hung=True)]).kind is Kind.USER_ERROR


RESIZING = Raised("function", "prefect_tpu.runtime.Resizing", "left", "", left="resize")


def test_leaving_at_a_resize_point_is_charged_to_nothing() -> None:
    """Whether the barrier ended the last of them or not; and it is always gone on from."""
    verdict = decide([host(0, raised=RESIZING), host(1, raised=RESIZING), host(2, stopped_by_us=True)])
    assert (verdict.kind, verdict.charge, verdict.culprits) == (Kind.RESIZED, "nothing", ())
    assert decide_retry(verdict, Spent().charge(verdict), Limits()).retry is True


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        ({"lost": "x", "gone": True, "preempted": True}, Kind.PREEMPTED),
        ({"lost": "x"}, Kind.INFRASTRUCTURE),
        ({"raised": raised()}, Kind.USER_ERROR),
        ({"signal": signal.SIGSEGV}, Kind.CRASHED_PROCESS),
    ],
)
def test_what_goes_wrong_at_a_resize_point_is_what_counts(other: dict[str, object], kind: Kind) -> None:
    """A loss or an error while the others leave is no resize."""
    assert decide([host(0, raised=RESIZING), host(1, **other)]).kind is kind


@pytest.mark.parametrize("stage", ["preload", "unpickle", "environment", "result"])
def test_what_no_repetition_mends_is_fatal(stage: Stage) -> None:
    """Cannot import, cannot unpickle, cannot ship back: never retried."""
    verdict = decide([host(0, raised=raised(stage=stage)), host(1, stopped_by_us=True)])
    assert verdict.kind is Kind.FATAL
    assert decide_retry(verdict, Spent(), Limits()).retry is False


def test_a_result_that_is_here_is_a_success_whatever_comes_after() -> None:
    """A host that is lost, or whose agent fails, after its result was fetched fails nothing."""
    after = [host(0, returned=True), host(1, lost="its agent is gone"), host(2, raised=raised(stage="environment"))]
    assert judge(Kind.SUCCEEDED, after) == Verdict(Kind.SUCCEEDED)
    assert judge(None, after).kind is Kind.FATAL


@pytest.mark.parametrize("outcome", [Kind.CANCELLED, Kind.TIMED_OUT])
def test_what_ended_it_from_outside_is_its_end(outcome: Kind) -> None:
    """Whatever the hosts did meanwhile."""
    assert judge(outcome, [host(0, raised=raised()), host(1, returned=True)]).kind is outcome


def test_no_success_without_results() -> None:
    """All return while the attempt is being ended at a deadline: nothing was fetched, so the notice counts."""
    hosts = [host(i, returned=True, notice="Ray drains it", exit_code=0) for i in range(2)]
    assert judge(None, hosts).kind is Kind.PREEMPTED
    assert judge(None, [host(0, returned=True), host(1, returned=True)]).kind is Kind.INFRASTRUCTURE


some_host = st.builds(
    dict,
    returned=st.booleans(),
    raised=st.sampled_from([None, PEER_LOSS, raised(), raised("KeyError", "preempted"), raised(stage="unpickle")]),
    signal=st.sampled_from([None, 6, 9, 11]),
    exit_code=st.sampled_from([None, 0, 3]),
    lost=st.sampled_from([None, "its agent is gone"]),
    gone=st.booleans(),
    preempted=st.booleans(),
    stopped_by_us=st.booleans(),
    notice=st.sampled_from(["", "Ray drains it"]),
    hung=st.booleans(),
)


@given(st.lists(some_host, min_size=2, max_size=6), st.randoms(use_true_random=False), st.booleans())
def test_one_charge_and_no_order(fields: list[dict[str, object]], shuffler: random.Random, preemptible: bool) -> None:
    """Exactly one charge for each attempt, whatever order the evidence came in; collateral is never guilty."""
    hosts = [host(i, **one) for i, one in enumerate(fields)]
    verdict = decide(hosts, preemptible=preemptible)
    shuffled = list(hosts)
    shuffler.shuffle(shuffled)
    assert decide(shuffled, preemptible=preemptible) == verdict
    spent = Spent().charge(verdict)
    units = spent.preemptions + spent.infrastructure + spent.failures
    assert units == (0 if verdict.charge == "nothing" else 1)
    assert not set(verdict.culprits) & set(verdict.collateral)
    assert verdict.kind is Kind.SUCCEEDED or verdict.culprits


@given(st.text(), st.text())
def test_no_text_changes_a_verdict(first: str, second: str) -> None:
    """Two exceptions that differ in nothing but their text are judged alike."""
    kinds = {decide([host(0, raised=raised(message=text)), host(1, returned=True)]).kind for text in (first, second)}
    assert kinds == {Kind.USER_ERROR}
