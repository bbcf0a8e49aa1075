"""TCP ports of this machine: free ones for coordinators, new for every attempt, and who listens on what."""

from __future__ import annotations

import random
import socket
import sys
from contextlib import ExitStack

FIRST_PORT = 20_000
TRIES = 200
_EPHEMERAL_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
_DEFAULT_EPHEMERAL_START = 32_768
_LISTEN = "0A"
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")

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


def only_on_loopback(port: int) -> bool:
    """Whether a process of this machine listens on this port of 127.0.0.1 or ::1: none then does on all addresses."""
    return any(listened == port and host in _LOOPBACK for host, listened, _ in listening())


def listening() -> list[tuple[str, int, str]]:
    """Address, port and inode of every TCP socket that listens in this network namespace."""
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            with open(f"/proc/net/{table}") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            if row[3] == _LISTEN:
                address, _, port = row[1].partition(":")
                found.append((socket.inet_ntop(family, _in_network_order(address)), int(port, 16), row[9]))
    return found


def _in_network_order(address: str) -> bytes:
    """The kernel prints words of 32 bits, each in the byte order of the machine."""
    words = (int(address[start : start + 8], 16) for start in range(0, len(address), 8))
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)


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
