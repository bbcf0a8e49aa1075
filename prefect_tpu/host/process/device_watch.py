"""A host whose JAX has fewer devices than its topology promises says so, in the run's logs."""

from __future__ import annotations

import logging
import sys
import threading

from prefect_tpu.host.process import jax_api

CONCLUDE_SECONDS = 5.0
"""JAX has its devices by then, and is asked only how many."""


class DeviceWatch:
    """Counts JAX's devices once it has started a backend, and starts none itself. Never blocks who looks."""

    def __init__(self, chips: int) -> None:
        """`chips`: of this host; 0 if it is not known, and then nothing is said."""
        self._chips = chips
        self._lock = threading.Lock()
        self._counting: threading.Thread | None = None

    def look(self) -> None:
        """Start to count, if there is something new to count. Called now and then."""
        with self._lock:
            if self._counting is None and self._chips and jax_api.starts_a_backend():
                self._counting = threading.Thread(target=self._count, name="prefect-tpu-devices", daemon=True)
                self._counting.start()

    def conclude(self) -> None:
        """The function is done: what is to be said is said now."""
        self.look()
        if self._counting is not None:
            self._counting.join(CONCLUDE_SECONDS)

    def _count(self) -> None:
        try:
            jax = sys.modules["jax"]
            platform, count = jax.default_backend(), jax.local_device_count()
        except Exception:  # noqa: BLE001 - the function hears it from JAX itself
            return
        # Chips of some TPU types are two devices each.
        if count == self._chips or (platform == "tpu" and count % self._chips == 0):
            return
        logging.getLogger("prefect_tpu").warning(
            "JAX has %d devices (%s) on this host, and its topology promises %d chips: the function runs with what "
            "there is. Look at XLA_FLAGS, JAX_NUM_CPU_DEVICES, JAX_PLATFORMS and TPU_VISIBLE_CHIPS in `env`, at what "
            "the function sets itself, and at the host's libtpu.",
            count,
            platform,
            self._chips,
        )
