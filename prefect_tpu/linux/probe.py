"""Which hosts still answer: Ray counts a host that has gone as alive for up to a minute."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import selectors
import socket
import time
from collections.abc import Iterable

PROBE_TIMEOUT_SECONDS = 0.5
"""For all hosts together; a host in the same network answers within milliseconds."""


def is_loopback(host: str) -> bool:
    """Whether this is a name or an address that each machine has for itself; "[::1]" may have its brackets."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def unreachable(endpoints: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those endpoints that take no TCP connection within PROBE_TIMEOUT_SECONDS, all tried at the same time.

    Args:
        endpoints: address and port of each host's raylet.
    """
    silent = set(endpoints)
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for endpoint in list(silent):
            family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
            connection = stack.enter_context(socket.socket(family))
            connection.setblocking(False)
            code = connection.connect_ex(endpoint)
            if code == 0:
                silent.discard(endpoint)
            elif code == errno.EINPROGRESS:
                selector.register(connection, selectors.EVENT_WRITE, endpoint)
        deadline = time.monotonic() + PROBE_TIMEOUT_SECONDS
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                selector.unregister(key.fileobj)
                if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    silent.discard(key.data)
    return silent
