"""Ray's token authentication: this process's is that of the cluster in use.

Ray keeps one mode and one token for a process, and reads both once, from the environment or a file. Here they are set
before the first request to a cluster, and taken back with the connection. A token is in this process's environment only
while Ray reads it, so that what the process starts does not inherit it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ray  # noqa: F401 - before parts of it: see tests/test_house.py
from ray._private.worker import global_worker
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    Config,
    GcsClient,
    get_authentication_mode,
)
from ray.exceptions import AuthenticationError, RayError

from prefect_tpu.core.errors import ConfigurationError

log = logging.getLogger("prefect_tpu.session")

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
ASK_SECONDS = 5.0
"""How long a cluster may take to say whether it asks for a token."""
_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_UNAUTHENTICATED = "16"
"""gRPC's status."""
SET_IT = (
    f"Set {MODE}=token, and the cluster's token in {TOKEN}, in the file that {TOKEN_PATH} names, or in "
    "~/.ray/auth_token; `ray get-auth-token` on its head shows it"
)

TokenOf = Callable[[str], str | None]
"""The token of the cluster at "host:port", if it is one of our own fleets."""


@dataclass(frozen=True, slots=True)
class Access:
    """How this process gets into a cluster.

    Attributes:
        asked: whether it asks for a token.
        source: where the token is from, for messages.
        token: of a fleet of our own; "" for the one that environment or file have.
    """

    asked: bool
    source: str = ""
    token: str = field(default="", repr=False)

    def environment(self) -> dict[str, str]:
        """For a process that gets into that cluster, too, in place of what the environment here has."""
        if not self.asked:
            return {MODE: "disabled"}
        if self.token:
            return {MODE: "token", TOKEN: self.token}
        return {name: os.environ[name] for name in (TOKEN, TOKEN_PATH) if name in os.environ} | {MODE: "token"}


def access_to(address: str, token_of: TokenOf | None = None, *, found: bool = False) -> Access:
    """How to get into the cluster at "host:port", which is not connected yet.

    Args:
        address: of its head.
        token_of: knows the tokens of our own fleets.
        found: Ray or we have found it on this machine; nobody wrote its address.

    Raises:
        ConfigurationError: it asks for a token, and there is none, or it may not be sent there.
    """
    mode = os.environ.get(MODE, "").lower()
    token = token_of(address) if token_of is not None else None
    if token:
        return Access(True, f"the local fleet at {address}", token)
    asked = asks_for_token(address)
    if asked is None:  # not to be told, with TLS for one: as Ray itself does
        asked = mode == "token" or (not mode and found and token_source() is not None)
    if not asked:
        if mode == "token":
            log.warning("Ray at %s asks nobody for a token, though %s=token is set here", address, MODE)
        return Access(False)
    if mode and mode != "token":
        raise ConfigurationError(f"Ray at {address} asks for a token, and {MODE} is {mode!r} here. {SET_IT}.")
    source = token_source()
    if source is None:
        raise ConfigurationError(
            f"Ray at {address} asks for a token, and there is none here. {SET_IT}. A fleet of `prefect-tpu fleet up` "
            "lets in who started it, with the same PREFECT_HOME."
        )
    if not mode and not found and not _is_of_this_machine(address):
        raise ConfigurationError(
            f"Ray at {address} asks for a token, and {MODE} is not set here: as Ray itself, this process sends none to "
            f"another machine unless told to. There is one in {source}. {SET_IT}."
        )
    return Access(True, source)


def asks_for_token(address: str) -> bool | None:
    """Whether the Ray cluster at "host:port" asks for a token. It is not sent one. None: that is not to be told."""
    import httpx  # Prefect's, with HTTP/2: Ray's own client would need this process's mode changed

    try:
        with httpx.Client(http1=False, http2=True, trust_env=False, timeout=ASK_SECONDS) as client:
            answer = client.post(
                f"http://{address}{_METHOD}",
                headers={"content-type": "application/grpc", "te": "trailers"},
                content=bytes(5),  # an empty message
            )
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError) as error:
        log.debug("cannot be told whether Ray at %s asks for a token: %s", address, error)
        return None
    if answer.headers.get("grpc-status") == _UNAUTHENTICATED:
        return True
    return False if answer.content else None


def token_source() -> str | None:
    """Where Ray finds a token for this process, for messages; None if nowhere."""
    if os.environ.get(TOKEN):
        return f"the variable {TOKEN}"
    if os.environ.get(TOKEN_PATH):
        return f"the file {os.environ[TOKEN_PATH]} ({TOKEN_PATH})"
    with contextlib.suppress(RuntimeError, OSError):  # no home
        usual = Path.home() / ".ray" / "auth_token"
        if usual.is_file():
            return f"the file {usual}"
    return None


class _State:
    """What Ray has been told here. `lock` guards it, for moments only: never while Ray connects."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.access: Access | None = None


_state = _State()


def enter(address: str, access: Access) -> None:
    """Have Ray use this access from now on, until `leave`.

    Raises:
        ConfigurationError: the cluster at `address` does not take that token.
    """
    with _state.lock:
        _state.access = access
        with _environment(access.environment()):
            _forget()
            if access.asked:  # else Ray would ask whoever answers us for a token that a file in the home has
                AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)  # it reads it, and keeps it
    if access.asked:
        _try(address, access)


def check(address: str, access: Access) -> None:
    """See that a cluster takes this access, if no other is in use.

    Raises:
        ConfigurationError: it does not.
    """
    if access.asked and _state.access is None and not global_worker.connected:
        enter(address, access)
        leave()


def _try(address: str, access: Access) -> None:
    try:
        GcsClient(address=address)
    except AuthenticationError as error:
        leave()
        way_out = f"It is kept with the fleet: end that, and start another. Else: {SET_IT}" if access.token else SET_IT
        raise ConfigurationError(
            f"Ray at {address} asks for a token, and does not take the one from {access.source}. {way_out}."
        ) from error
    except (RayError, RuntimeError, OSError) as error:  # not about the token: said by who connects
        log.debug("Ray at %s: %s", address, error)


def leave(only: Access | None = None) -> None:
    """Ray's mode and token are again what environment and files say; `only` if this access is in use."""
    with _state.lock:
        if _state.access is not None and (only is None or _state.access is only):
            _state.access = None
            _forget()


@contextlib.contextmanager
def while_ray_connects(access: Access) -> Iterator[None]:
    """Meanwhile the environment has the mode: Ray reads it once more. The token, it keeps."""
    with _environment({MODE: access.environment()[MODE]}, all_of_it=False):
        yield


def leave_with_connection(access: Access) -> None:
    """However the connection ends that was just made, also by somebody else's `ray.shutdown()`, it is `leave`d."""
    # Ray drops its node when it is shut down; a frame that still has it may keep it until after the next connection.
    weakref.finalize(global_worker.node, leave, access).atexit = False


class OtherTokenError(ConfigurationError):
    """This process shows another cluster's token, or none: Ray has one for a process, and nobody else is shown it."""


@contextlib.contextmanager
def at(address: str, token_of: TokenOf | None = None) -> Iterator[None]:
    """Get into the cluster at "host:port" meanwhile, without a connection.

    Raises:
        OtherTokenError: a connection to another cluster is in use, which is got into in another way.
        ConfigurationError: as `access_to` and `enter`.
    """
    if global_worker.connected and global_worker.gcs_client.address == address:
        yield
        return
    access = access_to(address, token_of)
    in_use = _in_use()
    if in_use is not None:
        if in_use != access:
            raise OtherTokenError(
                f"Ray at {address} is not asked: this process uses another Ray cluster, whose token is not shown to it."
            )
        yield
        return
    enter(address, access)
    try:
        yield
    finally:
        if not global_worker.connected:
            leave(access)


def _in_use() -> Access | None:
    access = _state.access
    if access is None and global_worker.connected:  # by somebody else
        asked = get_authentication_mode() == AuthenticationMode.TOKEN
        return Access(asked, (token_source() or "") if asked else "")
    return access


def check_open(address: str) -> None:
    """See that a connection which somebody else has opened is in the mode of its cluster: else agents cannot answer.

    Raises:
        ConfigurationError: it is not.
    """
    here = get_authentication_mode() == AuthenticationMode.TOKEN
    if here and asks_for_token(address) is False:
        raise ConfigurationError(
            f"This process is connected to Ray at {address} with token authentication, and that cluster has none: what "
            f"runs there could not answer. {MODE} is {os.environ.get(MODE, '')!r} here, which Ray itself also sets in "
            "ray.init() without an address. Unset it before ray.init(), or let the gang open the connection."
        )


def describe() -> str:
    """One phrase for `doctor`: whether there is a token, the mode, and from where. Never its value."""
    source = token_source()
    mode = os.environ.get(MODE)
    return f"{'no token' if source is None else f'a token in {source}'}, {MODE} " + (
        "is not set" if mode is None else f"is {mode!r}"
    )


def _forget() -> None:
    """Ray reads the mode now, and the token when it needs it next."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str], *, all_of_it: bool = True) -> Iterator[None]:
    """Meanwhile the environment has these; with `all_of_it` no other variable of Ray's authentication."""
    names = (MODE, TOKEN, TOKEN_PATH) if all_of_it else tuple(wanted)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _is_of_this_machine(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.bind((host, 0))
        return True
    return False
