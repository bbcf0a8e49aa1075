"""A clean process with the heavy imports done, from which every attempt on a host is forked.

It has one thread, no Ray, no Prefect and no accelerator backend. It dies with its agent, however that
ends, and takes every attempt with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from prefect_tpu.host.process import child, jax_api, jax_calls, reads
from prefect_tpu.linux import processes
from prefect_tpu.wire.channel import receive, receive_command, send_command

NUM_FORK_DESCRIPTORS = 5
LEFT_BEHIND_SECONDS = 0.3
"""What a process has left may end by itself for so long, as helpers do that see their parent go."""
LEFT_BEHIND_LOOK_SECONDS = 0.02
ALONG = {"prefect": ("prefect.main",)}
"""`import prefect` alone imports next to nothing; what a function then asks of it takes a second."""
MAX_NAMED = 100
"""Of the processes that were left."""


def main(descriptor: int) -> None:
    """Import what is to be imported ahead, then fork on demand. Returns only in a forked child."""
    if os.fork():
        os._exit(0)  # Ray kills the direct children of a process that it ends: the zygote must see to its own
    os.setsid()
    processes.adopt_orphans()
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    order = receive_command(control)
    preload: list[str] = order["preload"] if order is not None else os._exit(1)
    gc.disable()
    jax_calls.watch()
    with reads.watch() as looked_up:
        failure = _import(preload)
    if failure is not None:
        send_command(control, event="failed", looked_up=sorted(looked_up), **failure)
        os._exit(1)
    gc.freeze()  # or the collector would write to the pages that the children share
    zygote = _Zygote(control)
    send_command(control, event="ready", pid=os.getpid(), looked_up=sorted(looked_up))
    descriptors = zygote.serve()
    gc.enable()
    child.run(*descriptors)


def _import(modules: list[str]) -> dict[str, str] | None:
    """Import them; what went wrong, if something did."""
    for name in modules:
        try:
            for one in (name, *ALONG.get(name, ())):
                importlib.import_module(one)
            if jax_api.has_started_a_backend():
                raise RuntimeError("importing it starts a JAX backend, which can be done only once per attempt")
        except BaseException as error:  # noqa: BLE001 - whatever a module does on import, it is told
            return {
                "module": name,
                "error": f"{type(error).__name__}: {error}"[:4_000],
                "traceback": traceback.format_exc()[-16_000:],
            }
    return None


@dataclass(slots=True)
class _Zygote:
    control: socket.socket
    attempts: dict[int, str] = field(default_factory=dict)

    def serve(self) -> tuple[int, ...]:
        """Fork, reap and report until the agent is gone; returns its descriptors in a forked child."""
        waking, woken = socket.socketpair()
        for one in (waking, woken):
            one.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self.control, waking], [], [])
            if waking in ready:
                waking.recv(4096)
                self._reap()
            if self.control in ready:
                descriptors = self._obey()
                if descriptors is not None:
                    signal.set_wakeup_fd(-1)
                    for one in (waking, woken, self.control):
                        one.close()
                    return descriptors

    def _obey(self) -> tuple[int, ...] | None:
        received = receive(self.control, NUM_FORK_DESCRIPTORS)
        if received is None:
            self._end()
        data, descriptors = received
        command: dict[str, Any] = json.loads(data)
        match command["do"]:
            case "fork":
                return self._fork(command["attempt"], tuple(descriptors))
            case "signal" if command["pid"] in self.attempts:
                processes.send_signal(command["pid"], command["signal"])
            case "kill" if command["pid"] in self.attempts:
                self._kill(command["pid"])
        return None

    def _fork(self, attempt: str, descriptors: tuple[int, ...]) -> tuple[int, ...] | None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            send_command(self.control, event="not forked", attempt=attempt, error=str(error))
            pid = -1
        if pid == 0:
            processes.die_with_parent(parent)
            os.setsid()
            os.environ[processes.ATTEMPT_MARK] = processes.attempt_mark(attempt, parent)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return descriptors
        for one in descriptors:
            os.close(one)
        if pid > 0:
            self.attempts[pid] = attempt
            send_command(self.control, event="forked", attempt=attempt, pid=pid)
        return None

    def _reap(self) -> None:
        while True:
            try:
                # The process id stays taken until its whole session is dead.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self.attempts:
                left = self._end_what_is_left(pid) if self._left_behind() else []
                attempt = self.attempts.pop(pid)
                by_signal = ended.si_code != os.CLD_EXITED
                send_command(
                    self.control,
                    event="exited",
                    attempt=attempt,
                    exit_code=None if by_signal else ended.si_status,
                    signal=ended.si_status if by_signal else None,
                    left=left,
                )
            os.waitpid(pid, 0)

    def _left_behind(self) -> bool:
        """Whether anybody but children of ours hangs below this process.

        Whoever loses its parent down here becomes a child of this process, so all that an ended attempt has
        left is among its children. The answer saves a look at every process of the host.
        """
        children = processes.children(os.getpid())
        return children is None or not children <= self.attempts.keys()

    def _end_what_is_left(self, pid: int) -> list[str]:
        """Kill what an attempt has left, once it had a moment to end by itself; what had to be, by name and number."""
        give_up = time.monotonic() + LEFT_BEHIND_SECONDS
        find = self._finder(pid)
        while True:
            table = processes.snapshot()
            left = sorted(one for one in find(table) - {pid} if one in table and table[one].alive)
            if not left or time.monotonic() >= give_up:
                break
            time.sleep(LEFT_BEHIND_LOOK_SECONDS)
        names = [f"{processes.name_of(one)} ({one})" for one in left[:MAX_NAMED]]
        names += [str(one) for one in left[MAX_NAMED:]]
        processes.kill_all(find)
        return names

    def _kill(self, pid: int) -> None:
        processes.kill_all(self._finder(pid))

    def _finder(self, pid: int) -> Callable[[processes.Table], set[int]]:
        """Finds an attempt's process and all that comes from it."""
        mark = processes.attempt_mark(self.attempts[pid], os.getpid())

        def find(table: processes.Table) -> set[int]:
            found = processes.descendants(table, pid)
            found |= processes.marked(table, processes.ATTEMPT_MARK, mark)
            for one in table.values():
                if one.parent == os.getpid() and one.pid not in self.attempts:
                    # An orphan that has left its session. Whose? If nobody else is here, this attempt's.
                    told = processes.has_variable(one.pid, processes.ATTEMPT_MARK)
                    if len(self.attempts) == 1 and not told:
                        found |= processes.descendants(table, one.pid)
            return found

        return find

    def _end(self) -> NoReturn:
        me = os.getpid()
        mark = os.environ.get(processes.ZYGOTE_MARK, "")

        def find(table: processes.Table) -> set[int]:
            return (processes.descendants(table, me) | processes.marked(table, processes.ZYGOTE_MARK, mark)) - {me}

        processes.kill_all(find)
        os._exit(0)
