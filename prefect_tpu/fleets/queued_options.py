"""Every option of a fleet of queued resources, once. After a change: `python -m prefect_tpu.fleets.queued_generate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from prefect_tpu.options.declare import Discreet
from prefect_tpu.options.types import Flag, must
from prefect_tpu.provision.owner import LABEL_KEY, LABEL_VALUE, NAME
from prefect_tpu.provision.request import Provisioning

OWN_LABELS = "prefect-tpu-"
MAX_LABELS = 50
"""Of one node, with our own."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How the fleet has it, as it is written in an annotation; `hidden`: not in its repr."""

    text: str
    hidden: bool = False


def _matches(pattern: str | re.Pattern[str], must_be: str) -> AfterValidator:
    def check(given: str) -> str:
        if not re.fullmatch(pattern, given):
            raise ValueError(f"must be {must_be}")
        return given

    return AfterValidator(check)


def _are_zones(given: list[str]) -> list[str]:
    if len(set(given)) < len(given):
        raise ValueError("must be zones, each once")
    if not all(re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z]", zone) for zone in given):
        raise ValueError("must be names of zones, such as ('us-east5-b',)")
    return given


def _are_packages(given: list[str]) -> list[str]:
    if not all(one.strip() and not one.startswith("-") for one in given):
        raise ValueError("must be requirements as for pip")
    return [_without_secrets(one) for one in given]


def _without_secrets(given: str) -> str:
    if re.search(r"://[^/@\s]*:[^/@\s]*@", given):
        raise ValueError("must have no password in it: whoever may see the TPU VM can read it")
    return given


def _is_host_package(given: str) -> str:
    name = r"(prefect[-_.]tpu(\[[\w,-]+\])?\s*@\s*)?"
    sha = r"#sha256=[0-9a-f]{64}"
    known = (
        rf"gs://[a-z0-9][^\s#]*\.whl({sha})?",
        rf"{name}https://[^\s#]+\.whl{sha}",
        rf"{name}git\+https://[^\s@]+@[0-9a-f]{{40}}",
        r"prefect[-_.]tpu(\[[\w,-]+\])?==[\w.+!]+",
    )
    if not any(re.fullmatch(one, given) for one in known):
        raise ValueError(f"must be {HOST_PACKAGE_WORDS}")
    return _without_secrets(given)


def _are_labels(given: dict[str, str]) -> dict[str, str]:
    for key, value in given.items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value) or key.startswith(OWN_LABELS):
            raise ValueError(
                f"{{{key!r}: {value!r}}}: keys and values are lower-case letters, digits, dashes and underscores, 63 "
                f"at most; keys begin with a letter, and not with {OWN_LABELS!r}"
            )
    if len(given) > MAX_LABELS:
        raise ValueError(f"must be {MAX_LABELS} at most")
    return given


MAX_DURATION_SECONDS = 315_576_000_000
"""What Google's APIs take for a duration: 10,000 years."""


def _is_finite(given: float) -> float:
    if given > MAX_DURATION_SECONDS:
        raise ValueError("must be a number of seconds that ends")
    return given


HOST_PACKAGE_WORDS = (
    "where TPU VMs get prefect_tpu: 'gs://BUCKET/FILE.whl', 'https://HOST/FILE.whl#sha256=...', "
    "'git+https://HOST/REPOSITORY@COMMIT' with the whole commit, or, from an index in which the name is yours, "
    "'prefect-tpu==VERSION'"
)
LOCK_WORDS = "the address of a lock file with hashes: 'gs://BUCKET/FILE' or 'https://HOST/FILE'"
SECRETS_NAME = "the name of a secret in Secret Manager: 'projects/PROJECT/secrets/NAME', or a version of it"
ZONES_WORDS = "one or more zones in order of preference, each once: ('us-east5-b', 'us-east5-c')"
Project = Annotated[
    str,
    _matches(r"[a-z][-a-z0-9.:]{4,62}", "the id of a Google Cloud project, such as 'my-project'"),
    must("the id of a Google Cloud project, such as 'my-project'"),
]
Zones = Annotated[
    list[str], Field(min_length=1), AfterValidator(_are_zones), must(ZONES_WORDS), Kept("tuple[str, ...]")
]
NAME_WORDS = "lower-case letters, digits and dashes, 40 at most, and begin with a letter"
Name = Annotated[str, _matches(NAME, NAME_WORDS), must(NAME_WORDS)]
HowProvisioned = Annotated[Provisioning, must("'spot', 'on-demand' or 'reservation'"), Kept("Provisioning")]
Text = Annotated[str, _matches(r"(?s).*\S.*", "a text that is not empty"), must("a text that is not empty")]
Secret = Annotated[str, must("a text"), Kept("str", hidden=True)]
ENDPOINT_WORDS = "'host:port', such as 'tpu.googleapis.com:443'"
Endpoint = Annotated[str, _matches(r"[^/\s]+:[0-9]+", ENDPOINT_WORDS), must(ENDPOINT_WORDS)]
Namespace = Annotated[str, Field(min_length=1), must("a text of at least 1 character")]
Packages = Annotated[list[str], AfterValidator(_are_packages), must("requirements as for pip"), Kept("tuple[str, ...]")]
HostPackage = Annotated[str, AfterValidator(_is_host_package), must(HOST_PACKAGE_WORDS)]
HostLock = Annotated[str, _matches(r"(gs|https)://[^\s/@]+/[^\s]+", LOCK_WORDS), must(LOCK_WORDS)]
TokenSecret = Annotated[
    str,
    _matches(r"projects/[-a-z0-9.:]+/secrets/[-\w]+(/versions/(latest|[0-9]+))?", SECRETS_NAME),
    must(SECRETS_NAME),
]
Labels = Annotated[
    dict[str, str],
    AfterValidator(_are_labels),
    must("a mapping of strings to strings"),
    Kept("tuple[tuple[str, str], ...] | Mapping[str, str]"),
]
Credentials = Annotated[Any, Kept("Any", hidden=True)]
FiniteSeconds = Annotated[
    float, Field(ge=0), AfterValidator(_is_finite), must("a number of seconds that is not negative")
]
FiniteSecondsAbove0 = Annotated[
    float, Field(gt=0), AfterValidator(_is_finite), must("a number of seconds that is more than 0")
]


class QueuedOptions(Discreet):
    """Fields of the block, and of the fleet."""

    project: Project = Field(default=..., description="Id of the Google Cloud project.")
    zones: Zones = Field(default=..., description="Zones of the slices, such as us-east5-b, in order of preference.")
    ray_address: str = Field(
        default="auto",
        title="Ray address",
        description="host:port of Ray's head for driver and TPU VMs; 'auto': the driver's machine is part of it.",
    )
    name: Name = Field(
        default="prefect-tpu", description="Name in ids and labels; fleets of one name clean up after each other."
    )
    provisioning: HowProvisioned = Field(default="spot", description="How slices are paid for and who may take them.")
    reservation_name: str | None = Field(
        default=None, title="Reservation", description="Name of the reservation; only for 'reservation'."
    )
    runtime_version: Text | None = Field(
        default=None, title="Runtime version", description="Image of the TPU VMs; empty: by accelerator type."
    )
    valid_until_seconds: FiniteSecondsAbove0 | None = Field(
        default=3_600.0,
        title="Valid until (seconds)",
        description="A request not fulfilled by then is given up and the next zone is asked; empty: it waits for ever.",
    )
    network: Text | None = Field(default=None, description="Network of the TPU VMs; empty: the project's default.")
    subnetwork: Text | None = Field(default=None, description="Subnetwork of the TPU VMs; empty: the network's own.")
    external_ips: Flag = Field(
        default=False, title="External addresses", description="TPU VMs have addresses that reach the internet."
    )
    service_account: Text | None = Field(
        default=None, title="Service account", description="Of the TPU VMs, by e-mail; empty: the project's default."
    )
    startup_script: Secret | None = Field(
        default=None,
        title="Startup script",
        description="What TPU VMs run to join Ray; empty: the package's own. {{ray_address}} is filled in.",
    )
    host_packages: Packages = Field(
        default_factory=list, title="Host packages", description="Installed on the TPU VMs beside Ray and JAX."
    )
    labels: Labels = Field(default_factory=dict, description="Labels of every TPU VM, beside the fleet's own.")
    join: Flag = Field(
        default=False,
        description="The flow's machine is beside the cluster: a Ray node without resources joins it for the flow.",
    )
    namespace: Namespace = Field(default="prefect_tpu", description="Ray's namespace for what prefect_tpu starts.")
    credentials: Credentials = Field(
        default=None, description="Identity that creates the slices; empty: that of the environment."
    )
    endpoint: Endpoint | None = Field(default=None, description="host:port of another API endpoint; empty: Google's.")
    idle_release_seconds: FiniteSeconds = Field(
        default=300.0,
        title="Idle release (seconds)",
        description="Slices that no gang wants are deleted after this time.",
    )
    join_timeout_seconds: FiniteSecondsAbove0 = Field(
        default=900.0,
        title="Join timeout (seconds)",
        description="From ACTIVE to a whole slice in Ray; one that takes longer is replaced.",
    )
    zone_pause_seconds: FiniteSecondsAbove0 = Field(
        default=60.0,
        title="Zone pause (seconds)",
        description="A zone without capacity is asked again after this time, then after twice as long, and so on.",
    )
    poll_seconds: FiniteSecondsAbove0 = Field(
        default=10.0, title="Poll (seconds)", description="Time between two looks at the API."
    )
    api_timeout_seconds: FiniteSecondsAbove0 = Field(
        default=30.0, title="API timeout (seconds)", description="Longest time of one try of a call."
    )
    api_retry_seconds: FiniteSecondsAbove0 = Field(
        default=60.0, title="API retry (seconds)", description="How long a call is tried again after 429 or 5xx."
    )
    close_timeout_seconds: FiniteSecondsAbove0 = Field(
        default=60.0,
        title="Close timeout (seconds)",
        description="For deleting everything when the flow's process ends.",
    )
    owner_silence_seconds: FiniteSecondsAbove0 = Field(
        default=900.0,
        title="Owner silence (seconds)",
        description="What a run elsewhere created is deleted when Ray has not heard of that run for so long.",
    )
    reap_after_seconds: FiniteSecondsAbove0 | None = Field(
        default=None,
        title="Reap after (seconds)",
        description="What runs on other machines left is deleted at this age, longer than any run; empty: never.",
    )
    host_package: HostPackage | None = Field(
        default=None,
        title="Host package",
        description="Where TPU VMs get prefect_tpu: gs://...whl, https://...whl#sha256=..., git+https://...@COMMIT.",
    )
    host_lock: HostLock | None = Field(
        default=None,
        title="Host lock file",
        description="Lock file with hashes, gs:// or https://: all that TPU VMs install.",
    )
    token_secret: TokenSecret | None = Field(
        default=None,
        title="Token secret",
        description="Secret Manager's name of the Ray cluster's token: projects/P/secrets/S; TPU VMs read it.",
    )
    unprotected_ray: Flag = Field(
        default=False,
        title="Unprotected Ray",
        description="Ray asks for no token: whoever reaches a TPU VM runs code on all of them.",
    )
