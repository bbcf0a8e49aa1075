"""`prefect-tpu doctor`: looks at what runs need, line by line, and says what to do where it is not so."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from prefect_tpu._version import __version__
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.core.messages import DeviceCheck
from prefect_tpu.settings import current_settings, unknown_settings

API_SECONDS = 5.0
HOSTS_SECONDS = 60.0
"""For all hosts to answer."""
MAX_SKEW_SECONDS = 2.0
MAX_SERVER_SKEW_SECONDS = 5.0
"""A Date header has whole seconds."""
BAD_PAIRS: tuple[tuple[str, str, str, str, str], ...] = (
    ("prefect", "<3.9", "fastapi", ">=0.151", "Prefect's server cannot start: pip install 'fastapi<0.151'"),
    ("prefect-ray", "<0.6", "ray", ">=2.60", "pip install 'prefect-ray>=0.6'"),
)
"""One version with another, and what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        name: what was looked at.
        ok: whether it is as it should be; None if it could not be looked at, which is no fault.
        says: what there is.
        to_do: what to do if it is not as it should be.
    """

    name: str
    ok: bool | None
    says: str
    to_do: str = ""


def examine(address: str | None = None) -> list[Finding]:
    """Look at all of it. Reserves nothing, changes nothing.

    Args:
        address: of a Ray cluster, "auto" or host:port; None: the setting `ray_address`, and no cluster if it is unset.
    """
    findings: list[Finding] = []
    for look in (_settings, _versions, _bad_pairs, _prefect_api, lambda: _cluster(address)):
        findings += _safely(look)
    return findings


def _safely(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        for one in look():
            found.append(one)  # noqa: PERF402 - what was found before an error counts
    except Exception as error:  # noqa: BLE001 - the others are looked at all the same
        found.append(Finding("look", False, f"{type(error).__name__}: {error}", "please report this"))
    return found


def _settings() -> Iterator[Finding]:
    try:
        given = sorted(current_settings().model_fields_set)
    except ConfigurationError as error:
        yield Finding("settings", False, str(error), "mend it where it is set: environment, profile, job variables")
        return
    yield Finding("settings", True, f"set: {', '.join(given)}" if given else "all have their defaults")
    for written, place, to_do in unknown_settings():
        yield Finding(written, False, f"there is no such setting ({place})", to_do)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    yield Finding("python", True, f"{platform.python_version()}, prefect_tpu {__version__}")
    for line in importlib.metadata.requires("prefect-tpu") or ():
        needed = Requirement(line)
        if needed.marker is not None:
            continue
        there = _installed(needed.name)
        fits = there is not None and needed.specifier.contains(there, prereleases=True)
        yield Finding(
            needed.name,
            fits,
            there or "not installed",
            "" if fits else f"pip install '{needed.name}{needed.specifier}'",
        )


def _bad_pairs() -> Iterator[Finding]:
    for first, first_range, second, second_range, to_do in BAD_PAIRS:
        one, other = _installed(first), _installed(second)
        if one is None or other is None:
            continue
        both = Requirement(f"{first}{first_range}"), Requirement(f"{second}{second_range}")
        bad = both[0].specifier.contains(Version(one)) and both[1].specifier.contains(Version(other))
        yield Finding(f"{first} with {second}", not bad, f"{one} with {other}", to_do if bad else "")


def _prefect_api() -> Iterator[Finding]:
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        yield Finding(
            "Prefect API",
            None,
            "PREFECT_API_URL is not set: each program starts a server for itself; runs are kept in Prefect's database",
            "prefect config set PREFECT_API_URL=http://HOST:4200/api",
        )
        return
    from prefect.client.orchestration import get_client

    from prefect_tpu import prefect_api

    try:
        with get_client(httpx_settings={"timeout": API_SECONDS}, sync_client=True) as client:
            before = time.time()
            answer = prefect_api.health(client)
            after = time.time()
            version = client.api_version()
    except Exception as error:  # noqa: BLE001 - whatever it is, it does not answer
        yield Finding("Prefect API", False, f"{url} does not answer: {error!r}", "start it, or mend PREFECT_API_URL")
        return
    yield Finding("Prefect API", True, f"{url}, version {version}")
    date = answer.headers.get("date")
    if date:
        skew = parsedate_to_datetime(date).timestamp() - (before + after) / 2
        fine = abs(skew) <= MAX_SERVER_SKEW_SECONDS
        yield Finding("Prefect's clock", fine, f"{skew:+.0f} s from here", "" if fine else "run NTP on both machines")


def _cluster(address: str | None) -> Iterator[Finding]:
    try:
        configured = current_settings().ray_address
    except ConfigurationError:
        yield Finding("Ray", None, "not looked at, as the settings cannot be read")
        return
    address = address or configured
    if address is None:
        yield Finding(
            "Ray",
            None,
            "no cluster given: runs without a pool use simulated slices",
            "prefect-tpu doctor --address auto",
        )
        return
    from prefect_tpu.cluster import auth, inventory, session
    from prefect_tpu.fleets.survey import survey
    from prefect_tpu.fleets.tokens import token_of

    yield Finding("Ray's token", None, auth.describe())
    try:
        target = session.connect(address, token_of=token_of)
    except ConfigurationError as error:
        hint = "give the address of a cluster that runs, from a machine that is part of it"
        yield Finding("Ray", False, str(error), "" if auth.SET_IT in str(error) else hint)
        return
    try:
        yield Finding("Ray", True, f"{target}, version {_installed('ray')}")
        slices = inventory.summary().slices
        whole = Counter(f"{one.accelerator_type} {one.topology}" for one in slices if one.intact)
        counts = ", ".join(f"{number} of {kind}" for kind, number in sorted(whole.items()))
        yield Finding(
            "whole slices", bool(whole), counts or "none", "" if whole else "see docs/hardware.md: labels and TPU"
        )
        for one in slices:
            if not one.intact:
                yield Finding(one.name, False, one.describe(), "bring its missing hosts back, or take the rest away")
        yield from _hosts(survey(_device_check(), timeout_seconds=HOSTS_SECONDS))
    finally:
        session.disconnect(target)


def _hosts(found: list[Any]) -> Iterator[Finding]:
    for host in found:
        if host.problem:
            yield Finding(host.label, False, host.problem, "look at Ray's logs there")
            continue
        versions = dict(host.versions)
        says = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
        here = {"prefect-tpu": __version__, "ray": _installed("ray")}
        other = [name for name, version in here.items() if versions.get(name) != version]
        minor = versions["python"].split(".")[:2] == platform.python_version().split(".")[:2]
        fine = not other and minor and bool(versions["jax"])
        yield Finding(host.label, fine, says, "" if fine else "install the same versions there as here, jax among them")
        if host.devices:
            yield Finding(f"{host.label}: accelerator", False, host.devices, "end that process, or remove the file")
        certain = max(0.0, abs(host.skew_seconds) - host.uncertain_seconds)
        if certain > MAX_SKEW_SECONDS:
            yield Finding(f"{host.label}: clock", False, f"{host.skew_seconds:+.1f} s from here", "run NTP there")


def _device_check() -> DeviceCheck:
    settings = current_settings()
    return DeviceCheck(tuple(settings.device_globs), settings.libtpu_lock_file, settings.device_wait_seconds)
