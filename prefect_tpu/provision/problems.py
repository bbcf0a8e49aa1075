"""Why a cloud does not give a slice: told from codes and typed details, never from prose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

QUOTA_REASONS = ("RESOURCE_QUOTA_EXCEEDED",)
RATE_REASONS = ("RATE_LIMIT_EXCEEDED",)
DISABLED_REASONS = ("SERVICE_DISABLED", "BILLING_DISABLED", "CONSUMER_INVALID")
"""Of google.rpc.ErrorInfo, as google.api.ErrorReason lists them."""


class Cause(Enum):
    """What stands in the way."""

    QUOTA = "quota"
    PERMISSION = "permission"
    DISABLED = "API disabled"
    INVALID = "invalid request"
    CAPACITY = "no capacity"
    BUSY = "too many requests"
    AWAY = "API does not answer"


FINAL = frozenset({Cause.PERMISSION, Cause.DISABLED, Cause.INVALID})
"""Waiting does not help; a person has to change something."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What stands in the way, and what to do about it.

    Attributes:
        text: names project and zone, quotes the service, and says what to do.
        said: the service's own words.
    """

    cause: Cause
    text: str
    said: str = ""

    @property
    def brief(self) -> str:
        """For a line of progress."""
        return f"{self.cause.value} ({self.said})" if self.said else self.cause.value


class CloudError(Exception):
    """A call to the cloud's API failed; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


def explain(
    code: str,
    said: str,
    *,
    project: str,
    zone: str,
    doing: str,
    reason: str = "",
    violations: Sequence[str] | None = None,
    of_resource: bool = False,
) -> Problem:
    """The problem behind one answer of the service.

    Args:
        code: gRPC's name of the status, "RESOURCE_EXHAUSTED".
        said: the service's own words, quoted.
        project: where.
        zone: where.
        doing: "create v4-8", "list".
        reason: of its google.rpc.ErrorInfo, "" if it has none.
        violations: of its google.rpc.QuotaFailure, one text each; None if it has none.
        of_resource: the error of a FAILED resource, not of a call.
    """
    cause = cause_of(code, reason, violations, of_resource=of_resource)
    quoted = f"{code}: {said}".rstrip(": ") + "".join(f" ({one})" for one in violations or () if one and one != said)
    where = f"{doing} in {zone} of project {project}"
    match cause:
        case Cause.QUOTA:
            todo = (
                "the quota of the project does not allow it. See it under IAM & Admin, Quotas, service "
                f"tpu.googleapis.com, for {zone}: ask for more there, ask for fewer slices, or delete queued resources "
                f"that are SUSPENDED or FAILED, which hold quota, too (`gcloud compute tpus queued-resources list "
                f"--zone {zone} --project {project}`)"
            )
        case Cause.PERMISSION:
            todo = (
                "the identity that the driver runs with may not do it. Give its service account roles/tpu.admin on the "
                "project, and roles/iam.serviceAccountUser on the service account of the TPU VMs"
            )
        case Cause.DISABLED:
            todo = (
                f"run `gcloud services enable tpu.googleapis.com --project {project}`, and see that the project has "
                "billing"
            )
        case Cause.INVALID:
            todo = (
                "the request itself is refused. Compare accelerator type and topology with `gcloud compute tpus "
                f"accelerator-types list --zone {zone}`, runtime_version with `gcloud compute tpus tpu-vm versions "
                f"list --zone {zone}`, and network, reservation and service account with what the project has"
            )
        case Cause.CAPACITY:
            todo = "the zone has none at the moment. Other zones are tried, then this one again"
        case Cause.BUSY:
            todo = "the API was asked too often. It is asked again later"
        case Cause.AWAY:
            todo = "the API did not answer, or not in time. It is asked again"
    return Problem(cause, f"{where}: {cause.value}: {todo}. The service said: {quoted}", quoted)


def cause_of(code: str, reason: str, violations: Sequence[str] | None, *, of_resource: bool = False) -> Cause:
    """The cause alone; arguments as of `explain`."""
    match code:
        case "RESOURCE_EXHAUSTED":
            if reason in RATE_REASONS:
                return Cause.BUSY
            if reason in QUOTA_REASONS or violations is not None:
                return Cause.QUOTA
            return Cause.CAPACITY if of_resource else Cause.BUSY
        case "PERMISSION_DENIED" | "UNAUTHENTICATED":
            return Cause.DISABLED if reason in DISABLED_REASONS else Cause.PERMISSION
        case "INVALID_ARGUMENT" | "NOT_FOUND" | "FAILED_PRECONDITION" | "OUT_OF_RANGE" | "UNIMPLEMENTED":
            return Cause.INVALID
    return Cause.CAPACITY if of_resource else Cause.AWAY
