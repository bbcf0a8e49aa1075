"""Free TCP ports for coordinators, new for every attempt."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

FIRST_PORT = 20_000
TRIES = 200
_EPHEMERAL_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
_DEFAULT_EPHEMERAL_START = 32_768

_random = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on, on any address.

    They are picked at random below the range from which the kernel takes ports for outgoing connections, so
    neither such a connection nor another process that asks at the same time is likely to take them first.
    """
    last = _ephemeral_start()
    ports: list[int] = []
    with ExitStack() as held:
        for attempt in range(TRIES):
            if len(ports) == count:
                break
            wanted = _random.randrange(FIRST_PORT, last) if last > FIRST_PORT and attempt < TRIES // 2 else 0
            bound = _bind(wanted)
            if bound is not None:
                held.enter_context(bound)
                ports.append(bound.getsockname()[1])
    if len(ports) < count:
        raise OSError(f"no {count} free TCP ports on {socket.gethostname()} after {TRIES} tries")
    return ports


def _bind(port: int) -> socket.socket | None:
    family, address = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "")
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind((address, port))
        one.listen(1)
    except OSError:
        one.close()
        return None
    return one


def _ephemeral_start() -> int:
    try:
        with open(_EPHEMERAL_RANGE) as file:
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return _DEFAULT_EPHEMERAL_START
