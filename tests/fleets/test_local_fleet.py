"""The local fleet: real raylets as TPU hosts, its verbs, its one Ray connection, and that it is gone in the end."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prefect_tpu.cluster import addresses, auth, inventory, session
from prefect_tpu.core.errors import ConfigurationError, ProvisioningError, TopologyError
from prefect_tpu.fleets import tokens
from prefect_tpu.fleets.fleet import Fleet
from prefect_tpu.fleets.local_environment import clean_environment
from prefect_tpu.fleets.local_fleet import LocalFleet
from prefect_tpu.fleets.ray_fleet import RayFleet
from prefect_tpu.linux import processes
from prefect_tpu.sidecars.simulated_identity import simulated_host_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GONE_SECONDS = 10.0
SEEN_SECONDS = 15.0
ONE_HOST: dict[str, Any] = {"slices": 1, "topology": "2x2x1"}


def until(look: Callable[[], Any], what: str, seconds: float = SEEN_SECONDS) -> Any:
    """What `look` returns once it is truthy."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


def free(fleet: LocalFleet) -> list[str]:
    return [one.name for one in inventory.free_slices(fleet.shape)]


def look_around() -> dict[str, str]:
    """The environment of a host."""
    return dict(os.environ)


# --- a value


def test_it_is_a_value() -> None:
    """Equal configurations are equal, hash alike and pickle; nothing starts by making one."""
    one, same, other = LocalFleet(slices=3), LocalFleet(slices=3), LocalFleet(slices=2)
    assert (one == same, hash(one) == hash(same), one == other) == (True, True, False)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one.address == ""
    assert isinstance(one, Fleet)
    assert isinstance(RayFleet(), Fleet)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"slices": -1}, ConfigurationError, "slices=-1.*from 0 to 64"),
        ({"slices": True}, ConfigurationError, "slices=True"),
        ({"slices": "2"}, ConfigurationError, "slices='2'"),
        ({"cpus_per_host": -1}, ConfigurationError, "cpus_per_host=-1"),
        ({"object_store_bytes_per_host": 1}, ConfigurationError, "object_store_bytes_per_host=1"),
        ({"start_timeout_seconds": 0}, ConfigurationError, "start_timeout_seconds=0"),
        ({"accelerator_type": "h100"}, TopologyError, "'h100'.*v4.*v6e"),
        ({"topology": "2x3x5"}, TopologyError, "'2x3x5'.*2x2x2"),
        ({"chips_per_host": 3}, TopologyError, "do not divide"),
    ],
)
def test_bad_values_are_refused_at_once(arguments: dict[str, Any], error: type, says: str) -> None:
    """Before any process is started; the message has the argument and what is allowed."""
    with pytest.raises(error, match=says):
        LocalFleet(**arguments)


def test_a_verb_needs_a_fleet_that_is_up() -> None:
    """Otherwise the message says what to do."""
    with pytest.raises(ConfigurationError, match=r"call connect\(\) first"):
        LocalFleet(slices=7).preempt("slice-0")


SECRET_NAMES = """
    PREFECT_API_KEY PREFECT_API_URL OPENAI_API_KEY GITHUB_TOKEN AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY DB_PASSWORD
    GOOGLE_APPLICATION_CREDENTIALS RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN TPU_NAME HF_TOKEN WANDB_API_KEY PGPASSWORD
    MYSQL_PWD SENTRY_DSN GH_PAT KAGGLE_KEY AZURE_STORAGE_KEY STRIPE_KEY ENCRYPTION_KEY NPM_AUTHTOKEN GITHUBTOKEN
    SSHPASS RESTIC_PASS RESTIC_PASSWORD_FILE JWT MY_JWT_FILE SLACK_WEBHOOK_URL NETRC PGPASSFILE SECRETS_DIR apikey
    AZURE_STORAGE_CONNECTION_STRING SESSION_COOKIE SSH_AUTH_SOCK
"""
SECRET_VALUES = {
    "DATABASE_URL": "postgres://u:hush@db/x",
    "REDIS_URL": "redis://:hush@cache:6379",
    "DB_URI": "mysql://u:hush@db/x",
    "MONGODB_URI": "mongodb+srv://u:hush@h/x",
    "AMQP_URL": "amqp://u:hush@h//",
    "PIP_INDEX_URL": "https://u:hush@pypi.example/simple",
    "UV_INDEX_URL": "https://hush@pypi.example/simple",
    "HTTPS_PROXY": "http://u:hush@proxy:3128",
    "CODE": "https://blob.example/code.zip?sv=1&sig=hush",
    "PEM": "-----BEGIN PRIVATE KEY-----\nhush",
    "JAX_COMPILATION_CACHE_DIR": "s3://u:hush@h/x",
}
HARMLESS_NAMES = """
    PATH HOME PWD OLDPWD LANG USER TOKENIZERS_PARALLELISM JAX_ENABLE_X64 JAX_LEGACY_PRNG_KEY XLA_FLAGS GIT_AUTHOR_NAME
    LD_LIBRARY_PATH KEYBOARD MONKEY_BUSINESS PASSENGERS COMPATIBILITY PATTERN LC_ALL PYTHONPATH VIRTUAL_ENV
    CUDA_VISIBLE_DEVICES CI_BYPASS
"""
HARMLESS_VALUES = {
    "HTTP_PROXY": "http://proxy:3128",
    "PIP_EXTRA_INDEX_URL": "https://pypi.example/simple",
    "REPOSITORY": "ssh://git@github.com/a/b",
    "MAIL": "a@b.example",
    "JAX_PLATFORMS": "cpu",
}


def test_hosts_do_not_see_secrets_or_prefect() -> None:
    """API keys, passwords, tokens and Prefect's own settings stay in the driver: by their names or their values."""
    dirty = dict.fromkeys(SECRET_NAMES.split(), "x") | SECRET_VALUES
    clean = dict.fromkeys(HARMLESS_NAMES.split(), "x") | HARMLESS_VALUES
    assert clean_environment(dirty | clean) == clean


def test_the_seam_keeps_xla_flags() -> None:
    """What the user set in XLA_FLAGS stays beside the number of devices."""
    environment = simulated_host_environment(LocalFleet().shape, "--xla_dump_to=x")
    flags = environment["XLA_FLAGS"].split()
    assert flags[:2] == ["--xla_dump_to=x", "--xla_force_host_platform_device_count=4"]
    assert int(environment["NPROC"]) > 4  # more XLA threads than devices, or collectives can wait for ever


# --- a fleet that is up


def test_slices_are_seen_whole(fleet: LocalFleet) -> None:
    """Names, hosts in worker-id order, chips and head resource as on real hosts."""
    assert free(fleet) == ["slice-0", "slice-1"]
    for one in (each.slice for each in inventory.fitting(fleet.shape)):
        assert [(host.worker_id, host.chips, host.has_head_resource) for host in one.hosts] == [
            (0, 4, True),
            (1, 4, False),
        ]
    assert "slice-1 (v4 2x2x2, 2 of 2 hosts, 8 chips): free" in inventory.summary().describe()
    assert inventory.summary_at(fleet.address) == inventory.summary()
    assert inventory.no_slices_message(fleet.address) is None


def test_a_host_has_its_environment(fleet: LocalFleet) -> None:
    """TPU variables as GKE sets them, and the simulation seam."""
    task: Any = ray.remote(num_cpus=0, resources={"TPU": 4}, max_retries=0)(look_around)
    env = ray.get(task.options(label_selector={"ray.io/tpu-slice-name": "slice-1"}).remote())
    assert env["TPU_NAME"] == "slice-1"
    assert env["TPU_WORKER_ID"] in ("0", "1")
    assert (env["TPU_ACCELERATOR_TYPE"], env["TPU_TOPOLOGY"]) == ("v4-16", "2x2x2")
    assert (env["JAX_PLATFORMS"], env["PREFECT_TPU_SIMULATED"]) == ("cpu", "1")
    assert "--xla_force_host_platform_device_count=4" in env["XLA_FLAGS"]


def test_a_reserved_slice_is_taken(fleet: LocalFleet) -> None:
    """A placement group counts as use; when it is removed the slice is free again."""
    hosts = inventory.fitting(fleet.shape)[0].slice.hosts
    group = ray.util.placement_group([{"TPU": 4}], bundle_label_selector=[{"ray.io/node-id": hosts[1].node_id}])
    assert group.wait(10)
    until(lambda: free(fleet) == ["slice-1"], "slice-0 is taken")
    assert "slice-0 (v4 2x2x2, 2 of 2 hosts, 8 chips): taken" in inventory.summary().describe()
    ray.util.remove_placement_group(group)
    until(lambda: free(fleet) == ["slice-0", "slice-1"], "slice-0 is free")


def test_a_preempted_slice_is_gone_and_comes_back(fleet: LocalFleet) -> None:
    """At once, although Ray itself takes seconds; restored hosts are new nodes."""
    before = {host.node_id for one in inventory.fitting(fleet.shape) for host in one.slice.hosts}
    fleet.preempt("slice-1")
    assert free(fleet) == ["slice-0"]
    assert "no host is alive" in inventory.summary().describe()
    assert [host["state"] for host in fleet.status()["slices"][1]["hosts"]] == ["down", "down"]
    fleet.restore("slice-1")
    until(lambda: free(fleet) == ["slice-0", "slice-1"], "slice-1 is back")
    after = {host.node_id for one in inventory.fitting(fleet.shape) for host in one.slice.hosts}
    assert len(before & after) == 2


def test_one_lost_host_breaks_its_slice(fleet: LocalFleet) -> None:
    """The slice is not handed out, the reason is in the summary, and restore starts only what is missing."""
    kept = inventory.fitting(fleet.shape)[0].slice.hosts[0].node_id
    fleet.preempt("slice-0/1")
    assert free(fleet) == ["slice-1"]
    assert "not whole: 1 of 2 hosts alive" in inventory.summary().describe()
    fleet.restore("slice-0")
    until(lambda: free(fleet) == ["slice-0", "slice-1"], "slice-0 is back")
    assert inventory.fitting(fleet.shape)[0].slice.hosts[0].node_id == kept


@ray.remote(num_cpus=0, max_restarts=0)
class Tenant:
    """Something on a host that runs on, with a child in a session of its own."""

    def start(self) -> list[int]:
        # Not in the actor's session, title and environment changed: as hard to find as it gets.
        child = subprocess.Popen(["sleep", "600"], start_new_session=True, env={"PATH": os.environ["PATH"]})
        return [os.getpid(), child.pid]


def tenant_on(fleet: LocalFleet, slice_index: int, worker_id: int) -> Any:
    # By node id: for some seconds Ray would also place it on the dead host that had these labels before.
    host = inventory.fitting(fleet.shape)[slice_index].slice.hosts[worker_id]
    where = NodeAffinitySchedulingStrategy(host.node_id, soft=False)
    actor: Any = Tenant
    return actor.options(scheduling_strategy=where).remote()


def test_a_preemption_takes_every_process_of_the_host(fleet: LocalFleet) -> None:
    """Actors, their children in other sessions, at once; the other slice does not notice."""
    lost, kept = tenant_on(fleet, 0, 1), tenant_on(fleet, 1, 0)
    lost_pids, kept_pids = ray.get([lost.start.remote(), kept.start.remote()])
    fleet.preempt("slice-0")
    assert [pid for pid in lost_pids if processes.is_alive(pid)] == []
    assert all(processes.is_alive(pid) for pid in kept_pids)
    os.kill(kept_pids[1], signal.SIGKILL)
    ray.kill(kept)


def test_a_drained_slice_has_notice_and_then_goes(fleet: LocalFleet) -> None:
    """Draining slices are not free; what runs there runs on until the deadline, then it is killed."""
    tenants = [tenant_on(fleet, 1, 0), tenant_on(fleet, 1, 1)]
    pids = [pid for pids in ray.get([one.start.remote() for one in tenants]) for pid in pids]
    began = time.monotonic()
    fleet.drain("slice-1", 4)
    until(lambda: free(fleet) == ["slice-0"], "slice-1 is not free", 2)
    assert "slice-1 (v4 2x2x2, 2 of 2 hosts, 8 chips): draining" in inventory.summary().describe()
    state = fleet.status()["slices"][1]["hosts"][0]
    assert state["state"] == "draining"
    assert 0 < state["seconds_left"] <= 4
    assert all(processes.is_alive(pid) for pid in pids)
    until(lambda: not any(processes.is_alive(pid) for pid in pids), "slice-1 is gone", 8)
    assert time.monotonic() - began >= 3.9
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(tenants[0].start.remote(), timeout=30)


def test_restore_ends_a_drain(fleet: LocalFleet) -> None:
    """A drain cannot be taken back in Ray: the slice comes back as new hosts."""
    fleet.drain("slice-0", 600)
    fleet.restore("slice-0")
    until(lambda: free(fleet) == ["slice-0", "slice-1"], "slice-0 is back")


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda fleet: fleet.preempt("slice-7"), "no slice 'slice-7'.*slice-0, slice-1"),
        (lambda fleet: fleet.preempt("slice-1/5"), "hosts 0 to 1, not '5'"),
        (lambda fleet: fleet.drain("slice-1/0", 5), "whole slice"),
        (lambda fleet: fleet.drain("slice-1", 0), "above 0"),
        (lambda fleet: fleet.restore(""), "no slice ''"),
    ],
)
def test_wrong_targets_are_refused(fleet: LocalFleet, do: Callable[[LocalFleet], None], says: str) -> None:
    """The message names what there is."""
    with pytest.raises(ConfigurationError, match=says):
        do(fleet)


def test_a_slice_more(fleet: LocalFleet) -> None:
    """It has the next name and is free at once."""
    with LocalFleet(**ONE_HOST) as small:
        assert small.add_slice() == "slice-1"
        until(lambda: free(small) == ["slice-0", "slice-1"], "slice-1 is there")
    fleet.connect()


def test_slices_with_names_that_come_and_go(fleet: LocalFleet) -> None:
    """A fleet that begins with none; a name is free again once its slice is gone for good."""
    with LocalFleet(slices=0, topology="2x2x1") as small:
        assert small.status()["slices"] == []
        for _ in range(2):
            assert small.add_slice("training-0a1b2c3d") == "training-0a1b2c3d"
            until(lambda: free(small) == ["training-0a1b2c3d"], "it is there")
            with pytest.raises(ConfigurationError, match="a slice 'training-0a1b2c3d' in this fleet already"):
                small.add_slice("training-0a1b2c3d")
            small.remove_slice("training-0a1b2c3d")
            until(lambda: free(small) == [], "it is gone")
            with pytest.raises(ConfigurationError, match=r"no slice 'training-0a1b2c3d'.*it has: none"):
                small.restore("training-0a1b2c3d")
    fleet.connect()


# --- one connection


def test_connecting_leaves_signal_handlers_alone(fleet: LocalFleet) -> None:
    """Ray replaces SIGTERM's on the main thread, and with it Prefect's: so it is not opened there."""

    def mine(*_: object) -> None: ...

    old = signal.signal(signal.SIGTERM, mine), signal.getsignal(signal.SIGINT)
    try:
        session.disconnect()
        fleet.connect()
        assert threading.current_thread() is threading.main_thread()
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) == old[1]
        assert free(fleet)
    finally:
        signal.signal(signal.SIGTERM, old[0])


def test_connecting_again_changes_nothing(fleet: LocalFleet) -> None:
    """From any thread, by an equal fleet or by address."""
    before = session.generation()
    thread = threading.Thread(target=LocalFleet(slices=2).connect)
    thread.start()
    thread.join()
    RayFleet(fleet.address).connect()
    RayFleet("auto").connect()
    assert session.generation() == before


def test_two_fleets_take_turns_but_not_while_slices_are_held(fleet: LocalFleet) -> None:
    """Another fleet of ours takes the connection over, unless a gang holds slices of the first."""
    first = session.generation()
    session.hold()
    other = LocalFleet(**ONE_HOST)
    try:
        with pytest.raises(ConfigurationError, match=f"holds slices of Ray at {fleet.address}"):
            other.connect()
    finally:
        session.release()
    other.connect()
    assert session.address() == other.address != fleet.address
    other.close()
    assert session.address() is None
    fleet.connect()
    assert session.generation() > first
    assert free(fleet) == ["slice-0", "slice-1"]


def test_ray_opened_by_others_is_used_or_refused_but_never_closed(fleet: LocalFleet) -> None:
    """Two addresses in the message; the user's own connection stays."""
    with LocalFleet(**ONE_HOST) as other:
        theirs = other.address
        session.disconnect()
        token = tokens.token_of(theirs)
        assert token is not None
        auth.enter(theirs, access := auth.Access(True, "the test", token))
        with auth.while_ray_connects(access), addresses.loopback_stays():
            ray.init(address=theirs, log_to_driver=False, logging_level="ERROR")
        with pytest.raises(ConfigurationError, match=f"at {theirs}.*wants {fleet.address}"):
            fleet.connect()
        other.connect()
        session.disconnect()
        assert ray.is_initialized()
        ray.shutdown()
        auth.leave()
    fleet.connect()


def test_a_shutdown_by_others_is_noticed(fleet: LocalFleet, caplog: pytest.LogCaptureFixture) -> None:
    """A RayTaskRunner that ends closes Ray under everybody: said, and the next gang connects again."""
    before = session.generation()
    ray.shutdown()
    assert session.generation() > before
    assert "closed or replaced outside prefect_tpu" in caplog.text
    fleet.connect()
    assert free(fleet)


def test_a_gang_inside_a_ray_worker_is_refused(fleet: LocalFleet) -> None:
    """In a Ray task the Prefect engine does not run: say where to start it."""

    def inside(address: str) -> str:
        try:
            RayFleet(address).connect()
        except ConfigurationError as error:
            return str(error)
        return "connected"

    task: Any = ray.remote(num_cpus=0, max_retries=0)(inside)
    assert "inside a Ray worker process" in ray.get(task.remote(fleet.address))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1"])
def test_nobody_there_is_said_soon(address: str) -> None:
    """Not after Ray's own long wait."""
    session.disconnect()
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"does not answer.*LocalFleet"):
        RayFleet(address).connect()
    assert time.monotonic() - began < 8


def test_ray_client_is_refused() -> None:
    """With the reason, and what to do instead."""
    with pytest.raises(ConfigurationError, match=r"object store on the driver's own host.*join=True"):
        RayFleet("ray://head:10001")


def test_ray_without_tpu_hosts_is_refused(fleet: LocalFleet) -> None:
    """A cluster with CPUs only: the message says what is missing."""
    session.disconnect()
    started = subprocess.run(
        [sys.executable, "-c", PLAIN_RAY], capture_output=True, text=True, timeout=120, check=False
    )
    assert "none of them has TPU chips" in started.stdout, started.stdout + started.stderr


PLAIN_RAY = textwrap.dedent(
    """
    import ray
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    from prefect_tpu import RayFleet
    from prefect_tpu.core.errors import ConfigurationError
    try:
        RayFleet(ray.get_runtime_context().gcs_address).connect()
    except ConfigurationError as error:
        print(error)
    ray.shutdown()
    """
)


def test_a_start_that_fails_says_why() -> None:
    """The end of the supervisor's log is in the message, and nothing stays."""
    fleet = LocalFleet(slices=1, topology="2x2x1", start_timeout_seconds=0.2)
    with pytest.raises(ProvisioningError, match=r"did not finish 'start' within 0.2 s.*start_timeout_seconds"):
        fleet.connect()
    assert fleet.address == ""


def test_progress_is_told_on_the_thread_that_waits() -> None:
    """A run's logger may need it; one line for each host that is up."""
    told: list[tuple[str, str]] = []
    fleet = LocalFleet(slices=1, topology="2x2x1", cpus_per_host=3)
    try:
        fleet.connect(lambda text: told.append((threading.current_thread().name, text)))
    finally:
        fleet.close()
    assert {thread for thread, _ in told} == {threading.current_thread().name}
    assert any("slice-0 host 0 is up (1 of 1 hosts" in text for _, text in told)


# --- gone in the end

DRIVER = textwrap.dedent(
    """
    import json, os, subprocess, sys, time
    import ray
    from prefect_tpu.sidecars import fleet_marks
    from prefect_tpu.linux.processes import read_process
    from prefect_tpu.fleets.local_fleet import LocalFleet

    @ray.remote(num_cpus=0)
    class Tenant:
        def start(self):
            return [os.getpid(), subprocess.Popen(["sleep", "600"], start_new_session=True).pid]

    fleet = LocalFleet(slices=1, topology="2x2x1")
    fleet.connect()
    tenant = Tenant.options(label_selector={"ray.io/tpu-slice-name": "slice-0"}).remote()
    pids = ray.get(tenant.start.remote())
    status = fleet.status()
    mark = os.path.basename(status["directory"]) + "/"
    leaders = [read_process(host["pid"]) for one in status["slices"] for host in one["hosts"]]
    pids += [one.pid for one in fleet_marks.find([mark], leaders)] + [status["pid"]]
    print(json.dumps({"pids": pids, "directory": status["directory"], "supervisor": status["pid"]}), flush=True)
    how = sys.argv[1]
    if how == "exception":
        raise RuntimeError("the driver fails")
    if how != "end":
        time.sleep(600)
    """
)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], dict[str, Any]]]]:
    """Start a driver of its own; tells every process id of its fleet."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    started: list[subprocess.Popen[str]] = []

    def start(how: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        process = subprocess.Popen(
            [sys.executable, str(script), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                found = json.loads(line)
                assert len(found["pids"]) >= 8
                return process, found
        raise AssertionError(process.communicate()[1])

    yield start
    for process in started:
        process.kill()
        process.communicate()


def assert_gone(found: dict[str, Any]) -> None:
    def left() -> list[int]:
        return [pid for pid in found["pids"] if processes.is_alive(pid)]

    until(lambda: not left(), "every process is gone", GONE_SECONDS)
    until(lambda: not os.path.exists(found["directory"]), "the directory is gone", GONE_SECONDS)


@pytest.mark.parametrize("how", ["end", "exception"])
def test_gone_after_the_driver_ends(how: str, driver: Any) -> None:
    """Normally or by an exception."""
    process, found = driver(how)
    assert process.wait(60) == (0 if how == "end" else 1)
    assert_gone(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_gone_after_the_driver_is_killed(number: signal.Signals, driver: Any) -> None:
    """Ctrl-C, and without a chance to clean up: the supervisor sees that its owner is gone."""
    process, found = driver("wait")
    process.send_signal(number)
    process.wait(60)
    assert_gone(found)


def test_gone_after_the_supervisor_is_killed(driver: Any) -> None:
    """Raylets die with it, its janitor does the rest; the driver's next verb says that it has ended."""
    _, found = driver("wait")
    os.kill(found["supervisor"], signal.SIGKILL)
    assert_gone(found)


def test_a_fleet_that_died_is_started_again() -> None:
    """The next connect does not hand out a dead cluster."""
    fleet = LocalFleet(slices=1, topology="2x2x1", cpus_per_host=2)
    with fleet:
        first = fleet.address
        # Else Ray ends this process when its raylet goes.
        session.disconnect()
        os.kill(fleet.status()["pid"], signal.SIGKILL)
        until(lambda: fleet.address == "", "the supervisor is gone")
        fleet.connect()
        assert fleet.address != first
        assert free(fleet) == ["slice-0"]


def test_no_trace_of_other_clusters_address(fleet: LocalFleet) -> None:
    """Ray's note of the machine's current cluster, which "auto" reads, is not ours."""
    note = Path("/tmp/ray/ray_current_cluster")
    assert not note.exists() or fleet.address not in note.read_text()
