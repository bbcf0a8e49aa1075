"""The one Ray connection of this process: opened off the main thread, shared, and never ray://."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import NoReturn

import ray
from ray._private import auto_init_hook
from ray._private.worker import WORKER_MODE, global_worker
from ray.exceptions import RayError

from prefect_tpu.cluster import addresses, auth, runtime_env
from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.linux import probe
from prefect_tpu.linux.places import current_directory

log = logging.getLogger("prefect_tpu.session")

DEFAULT_NAMESPACE = "prefect_tpu"
CONNECT_TIMEOUT_SECONDS = 60.0
"""How long Ray may take to connect once the port has answered."""


_AUTO_CONNECT = auto_init_hook.enable_auto_connect


class _Session:
    """State of the connection. `lock` guards all of it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.address: str | None = None
        self.node: Callable[[], object] = lambda: None  # weakly: that Ray drops it is how its end shows
        self.ours = False
        self.holds = 0
        self.generation = 0


_session = _Session()


def connect(address: str, *, namespace: str = DEFAULT_NAMESPACE, token_of: auth.TokenOf | None = None) -> str:
    """Connect this process to a Ray cluster, or find that it is connected already. From any thread.

    Args:
        address: "host:port" of the cluster, or "auto" for the one that runs on this machine (or the one in
            RAY_ADDRESS).
        namespace: Ray's namespace for named actors.
        token_of: knows the tokens of our own fleets; others' are where Ray looks for them.

    Returns:
        The cluster's "host:port".

    Raises:
        ConfigurationError: not an address, not reachable, connected elsewhere, called inside a Ray worker, the cluster
            asks for a token that this process does not have, or the current directory is gone.
    """
    _refuse_inside_ray_worker()
    addresses.refuse_ray_client(address)
    current_directory()  # Ray asks for it deep inside, where its absence looks like a cluster that refuses
    with _session.lock:
        _notice_foreign_shutdown()
        if ray.is_initialized():
            current = _current_address()
            if address == "auto" or addresses.same(address, current):
                if _session.address != current:
                    auth.check_open(current)
                    _adopt(current, ours=False)
                return current
            if not _session.ours:
                raise ConfigurationError(
                    f"This process is connected to Ray at {current}, which was opened outside prefect_tpu, and "
                    f"this gang wants {address}. A process has one Ray connection: use that cluster "
                    f"(RayFleet({current!r})), or call ray.shutdown() before the gang starts."
                )
            if _session.holds:
                raise ConfigurationError(
                    f"This process holds slices of Ray at {current}, and another gang wants {address}. A "
                    "process has one Ray connection: let the gangs on the first fleet end before one starts "
                    "on the second, or run them as two flow runs."
                )
            _disconnect_locked()
        target = addresses.resolve(address)
        access = auth.access_to(target, token_of, found=address == "auto")
        auth.enter(target, access)
        try:
            _off_main_thread(lambda: _init(target, namespace, access))
        except BaseException:
            auth.leave()
            raise
        auth.leave_with_connection(access)
        _adopt(target, ours=True)
        return target


def disconnect(address: str | None = None) -> None:
    """Close the connection if it is ours (and, if given, to `address`). Safe to call at any time."""
    with _session.lock:
        _notice_foreign_shutdown()
        if _session.ours and (address is None or _session.address == address):
            _disconnect_locked()


def hold() -> None:
    """Say that slices of the connected cluster are in use: the connection may not change now."""
    with _session.lock:
        _session.holds += 1


def release() -> None:
    """Take back one `hold`."""
    with _session.lock:
        if _session.holds == 0:
            raise RuntimeError("session.release() without a hold()")
        _session.holds -= 1


def generation() -> int:
    """A number that changes with every new connection: handles of an older one are worthless."""
    with _session.lock:
        _notice_foreign_shutdown()
        return _session.generation


def while_connected(connection: int, do: Callable[[], object]) -> bool:
    """Call Ray for the connection of that generation, if it is still there; meanwhile nobody closes it."""
    with _session.lock:
        _notice_foreign_shutdown()
        if _session.generation != connection or _session.address is None:
            return False
        do()
        return True


def address() -> str | None:
    """Where this process is connected to, None if it is not."""
    with _session.lock:
        _notice_foreign_shutdown()
        return _session.address


def _adopt(address: str, *, ours: bool) -> None:
    # Should somebody shut Ray down, no call of ours may start a new cluster on this machine unasked.
    auto_init_hook.enable_auto_connect = False
    _session.address, _session.node, _session.ours = address, weakref.ref(global_worker.node), ours
    _session.generation += 1
    if not ours:
        log.warning(
            "This process was connected to Ray at %s before its first gang: gangs use that connection, and it has to "
            "stay open until they have ended.",
            address,
        )


def _disconnect_locked() -> None:
    _session.address, _session.ours = None, False
    _session.generation += 1
    _off_main_thread(ray.shutdown)
    auth.leave()
    auto_init_hook.enable_auto_connect = _AUTO_CONNECT


def _notice_foreign_shutdown() -> None:
    """Somebody else (a RayTaskRunner that ends, the user) may have shut Ray down under us."""
    # Looks at Python objects only: Ray ends the process when its core is asked something while it shuts down.
    if _session.address is None or (ray.is_initialized() and global_worker.node is _session.node()):
        return
    log.warning(
        "The Ray connection to %s was closed or replaced outside prefect_tpu%s. Do not call ray.shutdown(), and "
        "let no RayTaskRunner() without an address end, while gangs run.",
        _session.address,
        ", while slices were in use" if _session.holds else "",
    )
    _session.address, _session.ours = None, False
    _session.generation += 1


def _current_address() -> str:
    address: str = ray.get_runtime_context().gcs_address
    return address


def _init(target: str, namespace: str, access: auth.Access) -> None:
    # Ray warns on every start off the main thread that it leaves SIGTERM alone, which is what we want.
    ray_log = logging.getLogger("ray._private.worker")
    level = ray_log.level
    ray_log.setLevel(logging.ERROR)
    stays = addresses.loopback_stays() if probe.is_loopback(target.rpartition(":")[0]) else contextlib.nullcontext()
    try:
        with auth.while_ray_connects(access), runtime_env.whatever_started_us(), stays:
            ray.init(
                address=target,
                namespace=namespace,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"Ray at {target} answers, but this process cannot join it: {error} The driver must run on a host of "
            "that Ray cluster, with the cluster's Ray and Python versions. Beside a cluster, "
            f"RayFleet({target!r}, join=True) makes this machine part of it."
        ) from error
    finally:
        ray_log.setLevel(level)


def _off_main_thread(do: Callable[[], object]) -> None:
    """Run on a short-lived thread: on the main thread Ray replaces the SIGTERM handler, and with it Prefect's."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:  # noqa: BLE001 - carried to the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="prefect-tpu-ray-connect", daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT_SECONDS)
    if thread.is_alive():
        raise ConfigurationError(
            f"Ray did not answer within {CONNECT_TIMEOUT_SECONDS:g} s after its port did. Look at the cluster's "
            "state (`ray status`) and at the logs of its head."
        )
    if failure:
        raise failure[0]


def _refuse_inside_ray_worker() -> None:
    if global_worker.connected and global_worker.mode == WORKER_MODE:
        _refuse_inside("a Ray worker process (by a RayTaskRunner, or in a Ray task or actor)")
    # Never imported here: who runs in a Dask worker has it.
    get_dask_worker = getattr(sys.modules.get("distributed.worker"), "get_worker", None)
    if get_dask_worker is not None:
        try:
            get_dask_worker()
        except ValueError:
            return
        _refuse_inside("a Dask worker (by a DaskTaskRunner, or in a Dask task)")


def _refuse_inside(where: str) -> NoReturn:
    raise ConfigurationError(
        f"A gang was started inside {where}. Start it from the flow: gangs are reached from the process that the "
        "Prefect engine runs in, and a gang task's .submit() needs no thread of the flow's own task runner."
    )
