"""JAX's distributed runtime in a host process, with every private name of JAX that is used."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from prefect_tpu.core.messages import JaxInit

JAX_SHUTDOWN_TIMEOUT_SECONDS = 8
"""Less than the grace that the agent gives a process whose threads and exit hooks are done."""
COORDINATOR_CONNECT_SECONDS = 5.0
COORDINATOR_RETRY_SECONDS = 0.01


ALONE_START_SECONDS = 10
"""For a runtime of this process alone."""

_ours = False
_starting = threading.Lock()


def start(init: JaxInit) -> None:
    """Make this process one of JAX's distributed runtime."""
    import jax

    global _ours
    if init.process_id != 0:
        _wait_for_coordinator(init.coordinator_address, init.initialization_timeout_seconds)
    # Else it warns of proxies: hosts of the gang are reached past them.
    jax.config.update("jax_check_proxy_envs", False)  # type: ignore[no-untyped-call]
    jax.distributed.initialize(
        coordinator_address=init.coordinator_address,
        coordinator_bind_address=init.coordinator_address,  # by default all addresses of the machine
        num_processes=init.num_processes,
        process_id=init.process_id,
        initialization_timeout=init.initialization_timeout_seconds,
        shutdown_timeout_seconds=JAX_SHUTDOWN_TIMEOUT_SECONDS,
        cluster_detection_method="deactivate",  # we know it all; asking the cloud's metadata costs seconds
    )
    _ours = True


def start_alone() -> None:
    """Start JAX's distributed runtime with this process alone in it, also where JAX has its devices already.

    As JAX does it, past the check that JAX has no devices yet: to a process that is alone they stay the same.
    Nothing, if it is up.
    """
    global _ours
    from jax._src import distributed

    with _starting:
        known, fresh = distributed.global_state, distributed.State()
        if known.client is not None:
            return
        address = f"unix-abstract:prefect-tpu-{secrets.token_hex(16)}"  # no port, no proxy, nothing to delete
        fresh.initialize(
            coordinator_address=address,
            coordinator_bind_address=address,
            num_processes=1,
            process_id=0,
            initialization_timeout=ALONE_START_SECONDS,
            shutdown_timeout_seconds=JAX_SHUTDOWN_TIMEOUT_SECONDS,
            cluster_detection_method="deactivate",
        )
        known.coordinator_address, known.service = fresh.coordinator_address, fresh.service
        known.preemption_sync_manager = fresh.preemption_sync_manager
        known.client = fresh.client  # last: the function may ask JAX at this very moment
        _ours = True


def is_ours() -> bool:
    """Whether JAX's distributed runtime is up in this process, and was started here and not by the function."""
    return _ours


def _wait_for_coordinator(address: str, timeout_seconds: float) -> None:
    """JAX's client, if it comes before the coordinator listens, tries again only after a second."""
    host, _, port = address.rpartition(":")
    give_up = time.monotonic() + timeout_seconds
    while time.monotonic() < give_up:
        try:
            socket.create_connection((host.strip("[]"), int(port)), COORDINATOR_CONNECT_SECONDS).close()
        except OSError:
            time.sleep(COORDINATOR_RETRY_SECONDS)
        else:
            return


def has_started_a_backend() -> bool:
    """Whether JAX holds devices already; a process that was forked from this one could not use them."""
    started = getattr(sys.modules.get("jax._src.xla_bridge"), "backends_are_initialized", None)
    return started is not None and bool(started())


def starts_a_backend() -> bool:
    """Whether JAX has, or is about to have, devices. Takes no lock: JAX holds its own while a TPU starts."""
    return bool(getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None))


def wait_for_arrays(result: Any) -> None:
    """So that what JAX still computes fails as the function's own error."""
    jax = sys.modules.get("jax")
    if jax is not None:
        # Not `block_until_ready` of all of it: that asks each object, and some answer to every name.
        jax.block_until_ready([one for one in jax.tree.leaves(result) if isinstance(one, jax.Array)])


def is_distributed() -> bool:
    """Whether JAX's distributed runtime is up in this process; JAX is not imported for it."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def mute_native_errors() -> None:
    """The function is done: what jaxlib's C++ side says of peers that end now is noise. Python is still heard."""
    heard = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    sys.stderr.flush()
    sys.stderr = heard
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def tell_of_preemption(*, alone: bool) -> bool:
    """JAX takes SIGTERM as the notice: `reached_preemption_sync_point` then agrees on a step among all hosts.

    Without JAX's runtime it would never be true.

    Args:
        alone: JAX's runtime was not started, as this process is alone to JAX: it is started now, for this.

    Returns:
        False if JAX is not there yet.
    """
    jax = sys.modules.get("jax")
    if jax is None or not hasattr(jax, "distributed"):
        return False
    from jax._src import distributed

    if alone:
        start_alone()
    if distributed.global_state.preemption_sync_manager is not None:  # else SIGTERM is a cancel
        os.kill(os.getpid(), signal.SIGTERM)
    return True


def keep_until_the_end() -> None:
    """JAX takes itself apart in an exit hook; other hooks, and threads of other hosts, may still need it."""
    if (hook := _clean_up()) is not None:
        atexit.unregister(hook)


def clean_up() -> None:
    """What JAX's own exit hook does."""
    global _ours
    _ours = False
    if (hook := _clean_up()) is not None:
        hook()


def _clean_up() -> Callable[[], None] | None:
    return getattr(sys.modules.get("jax._src.api"), "clean_up", None)


def shut_down() -> None:
    """Leave JAX's distributed runtime, if it is up."""
    global _ours
    _ours = False
    if not is_distributed():
        return
    try:
        sys.modules["jax"].distributed.shutdown()
    except Exception:
        logging.getLogger("prefect_tpu").debug("jax.distributed.shutdown failed", exc_info=True)
