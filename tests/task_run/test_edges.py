"""Where Prefect could lose the gang on the way: options, assets, background runs, other runners, caches, pickles."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from prefect import flow
from prefect import task as prefect_task
from prefect.assets import Asset
from prefect.assets import materialize as prefect_materialize
from prefect.cache_policies import INPUTS, NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import get_current_settings
from prefect.states import State
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect.task_worker import TaskWorker
from prefect.tasks import MaterializingTask, Task
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options
from ray._private import state as ray_state

from prefect_tpu import (
    ConfigurationError,
    LocalFleet,
    RayFleet,
    SliceUnavailableError,
    TpuMultisliceRunner,
    materialize,
    runtime,
    task,
)
from prefect_tpu.task_run.gang_task import GangTask
from tests.prefect_runs import run_and_state, task_runs
from tests.processes import alive, assert_gone
from tests.waiting import eventually

Runner = TpuMultisliceRunner[Any]
ATTRIBUTES = {
    "on_completion": "on_completion_hooks",
    "on_failure": "on_failure_hooks",
    "on_running": "on_running_hooks",
    "on_rollback": "on_rollback_hooks",
    "on_commit": "on_commit_hooks",
}
"""Options that a task keeps under another name."""
DASK_END_SECONDS = 30.0


def ignore(*_: Any) -> None:
    return None


def never(*_: Any) -> bool:
    return False


EVERY_OPTION: dict[str, Any] = {
    "name": "named",
    "description": "described",
    "tags": {"a"},
    "version": "3",
    "cache_policy": INPUTS,
    "cache_key_fn": None,  # see OTHER_OPTIONS
    "cache_expiration": timedelta(hours=1),
    "task_run_name": "run-{x}",
    "retries": 4,
    "retry_delay_seconds": [1, 2],
    "retry_jitter_factor": 0.5,
    "persist_result": True,
    "result_storage": None,  # a saved block
    "result_serializer": "json",
    "result_storage_key": None,  # see OTHER_OPTIONS
    "cache_result_in_memory": False,
    "timeout_seconds": 7.0,
    "log_prints": True,
    "refresh_cache": True,
    "on_completion": [ignore],
    "on_failure": [ignore],
    "on_running": [ignore],
    "on_rollback": [ignore],
    "on_commit": [ignore],
    "retry_condition_fn": never,
    "viz_return_value": 5,
    "asset_deps": [Asset(key="s3://bucket/data")],
}
OTHER_OPTIONS: list[dict[str, Any]] = [{"result_storage_key": "key"}, {"cache_key_fn": never, "persist_result": True}]
"""Those that exclude a cache policy."""


# -- options and assets


@pytest.mark.parametrize("materializes", [False, True])
def test_with_options_keeps_gang_options_and_assets(one_slice: Runner, materializes: bool) -> None:
    """Whatever is not given again stays, one option at a time, and the hosts run the same body."""
    assert set(EVERY_OPTION) == set(inspect.signature(Task.__init__).parameters) - {"self", "fn"}
    assets = [Asset(key="s3://bucket/model"), Asset(key="s3://bucket/other")]

    def body(x: int) -> int:
        return x

    def decorate(options: dict[str, Any]) -> Any:
        if materializes:
            return materialize(*assets, by="jax", task_runner=one_slice, **options)(body)
        return task(task_runner=one_slice, **options)(body)

    for options in (EVERY_OPTION, *OTHER_OPTIONS):
        gang = decorate(options)
        for again, changed in (
            (gang.with_options(), {}),
            (gang.with_options(retries=9).with_options(name="other"), {"retries": 9, "name": "other"}),
        ):
            assert isinstance(again, GangTask)
            assert again.body is body
            assert again.task_runner == one_slice
            for option, value in (options | changed).items():
                assert getattr(again, ATTRIBUTES.get(option, option)) == value, option
            assert isinstance(again, MaterializingTask) is materializes
            if materializes:
                assert (again.assets, again.materialized_by) == (assets, "jax")
    gang = decorate(EVERY_OPTION)
    if materializes:
        assert [one.key for one in gang.with_options(assets=["s3://a/b"]).assets] == ["s3://a/b"]
    with pytest.raises(TypeError, match=r"unknown options \['asset'\]; known: .*'asset_deps'"):
        gang.with_options(asset=1)
    assert gang.with_options(cache_policy=NO_CACHE, retries=0, timeout_seconds=None, refresh_cache=False)(3) == [3, 3]


def test_materialize_without_a_task_runner_is_prefects_own(one_slice: Runner) -> None:
    """Same class, same arguments, same refusal of nothing to materialize."""
    plain = materialize("s3://bucket/model", by="dbt", name="named", retries=2)(ignore)
    assert type(plain) is MaterializingTask
    assert (plain.materialized_by, plain.name, plain.retries) == ("dbt", "named", 2)
    assert type(prefect_materialize("s3://bucket/model")(ignore)) is type(plain)
    with pytest.raises(TypeError, match="at least one asset"):
        materialize()
    with pytest.raises(TypeError, match="at least one asset"):
        materialize(task_runner=one_slice)
    with pytest.raises(ConfigurationError, match="task_runner must be"):
        materialize("s3://bucket/model", task_runner=3)  # type: ignore[call-overload]


def asset_events(client: SyncPrefectClient, last: str) -> dict[tuple[str, str], list[Any]]:
    """Asset events by kind and asset, once `last` has been materialized; the server keeps their order."""

    def look() -> dict[tuple[str, str], list[Any]]:
        found: dict[tuple[str, str], list[Any]] = {}
        wanted = {"filter": {"event": {"prefix": ["prefect.asset."]}}, "limit": 50}
        for one in client.request("POST", "/events/filter", json=wanted).json()["events"]:
            kind = one["event"].removeprefix("prefect.asset.")
            found.setdefault((kind, one["resource"]["prefect.resource.id"]), []).append(one)
        return found if ("materialization.succeeded", last) in found else {}

    return dict(eventually(look, f"the materialization of {last}", 60))


def test_assets_are_materialized_once_per_gang(one_slice: Runner, client: SyncPrefectClient) -> None:
    """Not once per host, not by an attempt that fails, and with the lineage of any materialization."""

    @materialize("s3://edges/good", by="jax", task_runner=one_slice, asset_deps=["s3://edges/data"], retries=1)
    def good() -> int:
        if runtime.current().attempt == 1:
            raise ValueError("first attempt")
        return runtime.current().process_id

    @materialize("s3://edges/bad", task_runner=one_slice)
    def bad() -> None:
        if runtime.current().process_id == 1:
            raise ValueError("on one of the hosts")

    @materialize("s3://edges/submitted", task_runner=one_slice)
    def submitted(upstream: Any) -> Any:
        return upstream

    @prefect_materialize("s3://edges/last")
    def last() -> None:
        return None

    @flow
    def makes() -> Any:
        made = good()
        assert bad(return_state=True).is_failed()  # type: ignore[call-overload]
        again = submitted.submit(good.with_options(name="unmade", assets=["s3://edges/up"]).submit())  # type: ignore[call-arg]
        result = again.result()
        last()
        return made, result

    assert makes() == ([0, 1], [[0, 1], [0, 1]])
    events = asset_events(client, "s3://edges/last")
    counts = {key: len(found) for key, found in events.items() if "edges/" in key[1]}
    assert counts == {
        ("materialization.succeeded", "s3://edges/good"): 1,
        ("materialization.failed", "s3://edges/bad"): 1,
        ("materialization.succeeded", "s3://edges/up"): 1,
        ("materialization.succeeded", "s3://edges/submitted"): 1,
        ("materialization.succeeded", "s3://edges/last"): 1,
        ("referenced", "s3://edges/data"): 2,
        ("referenced", "s3://edges/up"): 1,
    }
    (event,) = events["materialization.succeeded", "s3://edges/good"]
    related = {one["prefect.resource.role"]: one["prefect.resource.id"] for one in event["related"]}
    assert related["asset"] == "s3://edges/data"
    assert related["asset-materialized-by"] == "jax"


# -- no way past the gang


def test_a_gang_task_given_to_another_runner_is_refused(one_slice: Runner, tmp_path: Path) -> None:
    """Threads, processes: the error says what to use, and the body has run nowhere."""
    ran = tmp_path / "ran"
    gang: Any = task(task_runner=one_slice)(touch)
    gang_async: Any = task(task_runner=one_slice)(touch_async)
    for runner in (ThreadPoolTaskRunner(), ProcessPoolTaskRunner(max_workers=1)):
        with runner:
            futures = [runner.submit(one, {"path": str(ran)}) for one in (gang, gang_async)]
            futures += runner.map(gang, {"path": [str(ran)]})
            for future in futures:
                with pytest.raises(ConfigurationError, match=r"Call it, or use its own \.submit\(\) or \.map\(\)"):
                    future.result()
    assert not ran.exists()


def touch(path: str) -> None:
    Path(path).touch()


async def touch_async(path: str) -> None:
    await asyncio.to_thread(Path(path).touch)


def test_a_task_worker_does_not_run_the_body(one_slice: Runner, client: SyncPrefectClient, tmp_path: Path) -> None:
    """A background run that another program has made fails with the reason; serving says so at once."""
    ran = tmp_path / "ran"
    gang: Any = task(task_runner=one_slice)(touch)
    future = prefect_task(touch).delay(str(ran))

    async def work() -> None:
        with pytest.raises(ConfigurationError, match="background task runs"):
            await gang.aserve()
        async with TaskWorker(gang) as worker:
            await worker.execute_task_run(client.read_task_run(future.task_run_id))

    asyncio.run(work())
    state = eventually(lambda: (found := future.state).is_final() and found, "the run has ended")
    assert state.is_failed()
    assert "was started past prefect_tpu" in state.message
    assert not ran.exists()


def test_fn_inside_another_task_is_the_plain_function(one_slice: Runner) -> None:
    """`fn` is the body, here, also where another task runs; a call is the gang."""

    @task(task_runner=one_slice)
    def where() -> int | None:
        ctx = runtime.current(default=None)
        return None if ctx is None else ctx.process_id

    @prefect_task
    def both() -> Any:
        return where.fn(), where()

    assert flow(lambda: both())() == (None, [0, 1])


def test_prefects_api_is_refused_on_hosts(one_slice: Runner) -> None:
    """Each thing that needs it says that hosts have none; what needs none works."""
    plain = prefect_task(lambda: 1)
    gang: Any = task(task_runner=one_slice)(lambda: 1)

    @task(task_runner=one_slice, timeout_seconds=90)
    def tries() -> Any:
        from prefect import get_client, get_run_logger
        from prefect.blocks.system import Secret
        from prefect.flows import Flow
        from prefect.variables import Variable

        def outcome(do: Any) -> str:
            try:
                return str(do())
            except Exception as error:  # noqa: BLE001 - all of them are the test's result
                return f"{type(error).__name__}: {error}"

        get_run_logger().info("still works")
        return [
            outcome(one)
            for one in (
                plain.fn, gang.fn, plain,
                gang, plain.delay, Flow(lambda: 1, name="sub"), lambda: Variable.get("x"),
                lambda: Secret.load("x"),
                lambda: get_client(sync_client=True).hello(),
            )
        ]  # fmt: skip

    for outcomes in tries():
        assert outcomes[:3] == ["1", "1", "1"]
        for one in outcomes[3:]:
            assert one.startswith("ConfigurationError: "), outcomes
            assert "on a host of a gang" in one, outcomes


# -- inside other systems' processes


def start_gang_inside(address: str) -> str:
    """What becomes of a gang that is started in this process."""
    gang = task(task_runner=TpuMultisliceRunner(pool=RayFleet(address)))(ignore)
    try:
        return str(gang())
    except ConfigurationError as error:
        return str(error)


def test_a_gang_in_a_dask_worker_is_refused(
    fleet: LocalFleet, one_slice: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says where it has to start; this process, which has Dask imported too, may start gangs."""
    monkeypatch.setenv("PREFECT_API_URL", str(get_current_settings().api.url))
    monkeypatch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    with Client(processes=True, n_workers=1, threads_per_worker=1, dashboard_address=None) as dask:
        pids = dask.run(os.getpid).values()
        workers = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19] for pid in pids}
        assert set(alive(workers)) == set(pids)
        said = dask.submit(start_gang_inside, fleet.address).result(timeout=90)
        assert task(task_runner=one_slice)(ignore)() == [None, None]
        dask.cluster.close()
    assert "inside a Dask worker" in said
    assert "Start it from the flow" in said
    assert_gone(workers, DASK_END_SECONDS)


def test_gangs_and_ray_task_runners_exchange_futures(fleet: LocalFleet, one_slice: Runner) -> None:
    """Both ways, also in lists; a gang inside a Ray task, or given to the Ray runner, is refused."""
    fleet.connect()

    @task(task_runner=one_slice)
    def gang(x: Any) -> Any:
        return x, runtime.current().process_id

    @prefect_task
    def on_ray(*values: Any) -> Any:
        return values

    @prefect_task
    def starts_gang() -> Any:
        return gang(1)

    @flow(task_runner=RayTaskRunner(address=fleet.address))
    def both() -> Any:
        first = on_ray.submit(1)
        second = gang.submit(first)
        third = on_ray.submit(second, [gang.map([7, 8])])
        refused = starts_gang.submit()
        refused.wait()
        from prefect.context import FlowRunContext

        context = FlowRunContext.get()
        assert context is not None
        past = context.task_runner.submit(gang, {"x": 1})
        past.wait()
        return third.result(), str(refused.state.message), str(past.state.message)

    (second, (mapped,)), refused, past = both()
    assert second == [((1,), 0), ((1,), 1)]
    assert mapped == [[(7, 0), (7, 1)], [(8, 0), (8, 1)]]
    assert "inside a Ray worker process" in refused
    assert "Start it from the flow" in refused
    assert "was started past prefect_tpu" in past


def test_remote_options_reserve_more_of_a_gangs_hosts(fleet: LocalFleet, tmp_path: Path) -> None:
    """num_cpus, memory and resources, on each host, for as long as it runs; called or submitted."""
    fleet.connect()
    runner: Any = TpuMultisliceRunner(pool=fleet, num_slices=1, jax_distributed=False, lease_timeout_seconds=20)
    folder = str(tmp_path)

    @task(task_runner=runner)
    def hold(name: str) -> None:
        import pathlib
        import time

        pathlib.Path(folder, name).touch()
        while not pathlib.Path(folder, f"{name}-go").exists():
            time.sleep(0.05)

    def free_cpus() -> float:
        return float(sum(one.get("CPU", 0) for one in ray_state.state.available_resources_per_node().values()))

    before = eventually(lambda: free_cpus() == 4 and free_cpus(), "all CPUs are free")

    @flow
    def reserves() -> list[float]:
        found = []
        with remote_options(num_cpus=1, memory=1_000_000):
            future = hold.submit("more")
        eventually((tmp_path / "more").exists, "it runs")
        found.append(free_cpus())
        (tmp_path / "more-go").touch()
        future.result()
        future = hold.submit("less")
        eventually((tmp_path / "less").exists, "it runs")
        found.append(eventually(lambda: free_cpus() == before and free_cpus(), "they are given back"))
        (tmp_path / "less-go").touch()
        future.result()
        return found

    assert reserves() == [before - 2, before]


def test_remote_options_that_a_host_cannot_have(fleet: LocalFleet) -> None:
    """More than it has is waited for, and named; what is not for gangs is refused before anything is reserved."""
    runner: Any = TpuMultisliceRunner(pool=fleet, jax_distributed=False, lease_timeout_seconds=3)

    @task(task_runner=runner)
    def never() -> None:
        raise AssertionError

    with remote_options(num_cpus=99), pytest.raises(SliceUnavailableError, match="and 99 CPU on each"):
        never()
    for options, name in (
        ({"num_gpus": 1}, "num_gpus"),
        ({"resources": {"TPU": 1}}, "TPU"),
        ({"memory": -1}, "memory"),
    ):
        with remote_options(**options), pytest.raises(ConfigurationError, match=rf"remote_options\({name}="):
            never()


# -- caches


def test_results_of_another_shape_are_no_hits(fleet: LocalFleet, tmp_path: Path) -> None:
    """num_slices, topology, chips_per_host, flatten and returns are part of the key; other options are not."""
    calls = tmp_path / "calls"

    def counted(path: str) -> int:
        if runtime.current().process_id == 0:
            with Path(path).open("a") as file:
                file.write("x")
        return runtime.current().num_slices

    def made_with(cached: Any, **options: Any) -> Any:
        common: dict[str, Any] = {"pool": fleet, "jax_distributed": False}
        again: Any = cached.with_options(task_runner=TpuMultisliceRunner(**(common | options)))
        state = again(str(calls), return_state=True)
        return state.name if state.is_failed() else (state.name, state.result())

    first: Any = task(task_runner=TpuMultisliceRunner, cache_policy=INPUTS, persist_result=True)(counted)
    keyed = first.with_options(cache_policy=None, cache_key_fn=lambda context, parameters: f"own {tmp_path}")
    for number, cached in enumerate((first, keyed), 1):
        assert made_with(cached) == ("Completed", [1, 1])
        assert made_with(cached, topology="2x2x2", env={"A": "b"}, max_preemptions=3) == ("Cached", [1, 1])
        assert made_with(cached, flatten=False) == ("Completed", [[1, 1]])
        assert made_with(cached, returns="process0") == ("Completed", 1)
        assert made_with(cached, num_slices=2) == ("Completed", [2, 2, 2, 2])
        assert made_with(cached, topology="2x2x1", lease_timeout_seconds=0) == "Failed", "it was looked for"
        assert made_with(cached, chips_per_host=2, lease_timeout_seconds=0) == "Failed"
        assert made_with(cached, num_slices=2) == ("Cached", [2, 2, 2, 2])
        assert len(calls.read_text()) == 4 * number
    never_cached = first.with_options(cache_policy=NO_CACHE)
    assert made_with(never_cached) == made_with(never_cached) == ("Completed", [1, 1])


def test_a_hit_in_a_later_flow_run_needs_no_cluster(one_slice: Runner, tmp_path: Path) -> None:
    """Called, submitted or mapped: the second run asks nobody for slices."""

    def upper(path: str) -> str:
        return path.upper()

    here: Any = task(task_runner=one_slice, cache_policy=INPUTS, persist_result=True)(upper)
    nowhere = here.with_options(task_runner=TpuMultisliceRunner(pool=RayFleet("127.0.0.1:9"), jax_distributed=False))

    @flow
    def first() -> Any:
        return here(str(tmp_path))

    @flow
    def second() -> Any:
        states = [nowhere(str(tmp_path), return_state=True), nowhere.submit(str(tmp_path), return_state=True)]
        states += nowhere.map([str(tmp_path)], return_state=True)
        return [(state.name, state.result()) for state in states]

    result = [str(tmp_path).upper()] * 2
    assert first() == result
    assert second() == [("Cached", result)] * 3


# -- futures in other processes


LOOKS_AT_FUTURES = """
import pickle, sys

def outcome(do):
    try:
        return str(do()).partition("\\n")[0]
    except BaseException as error:
        return f"{type(error).__name__}: {error}".partition("\\n")[0]

for future in pickle.load(sys.stdin.buffer):
    print(future.task_run_id, outcome(future.result), outcome(lambda: future.result(timeout=0, raise_on_failure=False)),
          outcome(future.wait), future.state.name, sep="|")
"""


def test_futures_work_in_another_process(one_slice: Runner, client: SyncPrefectClient, tmp_path: Path) -> None:
    """Done, failed, crashed, not yet done when it was pickled, and those of a map."""
    go = tmp_path / "go"

    @task(task_runner=one_slice)
    def ends(how: str) -> int:
        import pathlib
        import time

        if how == "fails":
            raise ValueError("asked to")
        if how == "crashes":
            raise KeyboardInterrupt("asked to")
        give_up = time.monotonic() + 60
        while how.startswith("/") and not pathlib.Path(how).exists() and time.monotonic() < give_up:
            time.sleep(0.05)
        return 5

    @flow
    def pickles() -> Any:
        futures = [ends.submit(how) for how in ("returns", "fails", "crashes")]
        futures += ends.map(["returns"])
        running: Any = ends.submit(str(go))
        threading.Timer(0.5, go.touch).start()
        return [str(one.task_run_id) for one in [*futures, running]], pickle.dumps([*futures, running])

    flow_run_id, state = run_and_state(pickles)
    ids, data = state.result()
    task_runs(client, flow_run_id, 5)
    done = subprocess.run(
        [sys.executable, "-c", LOOKS_AT_FUTURES],
        env=os.environ | {"PREFECT_API_URL": str(get_current_settings().api.url)},
        input=data, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    lines = [line.split("|") for line in done.stdout.decode().splitlines()]
    assert [line[0] for line in lines] == ids, done.stderr.decode()
    good = ["[5, 5]", "[5, 5]", "None", "Completed"]
    failed = ["ValueError: asked to", "asked to", "None", "Failed"]
    assert [line[1:] for line in lines if line[0] != ids[2]] == [good, failed, good, good]
    raised, returned, waited, name = lines[2][1:]
    assert raised.startswith("HostProcessError: slice 0 host 0 raised KeyboardInterrupt: asked to")
    assert returned.startswith("slice 0 host 0 raised KeyboardInterrupt: asked to")
    assert (waited, name) == ("None", "Crashed")


def test_a_pickled_future_is_a_parameter_and_an_upstream(one_slice: Runner, client: SyncPrefectClient) -> None:
    """What comes out of a pickle goes on like any future."""

    @task(task_runner=one_slice)
    def value() -> int:
        return 5

    @prefect_task(task_run_name="adds")
    def adds(values: list[int]) -> int:
        return sum(values)

    @flow
    def chain() -> Any:
        again = pickle.loads(pickle.dumps(value.submit()))
        return str(again.task_run_id), adds.submit(again).result()

    flow_run_id, state = run_and_state(chain)
    assert isinstance(state, State)
    upstream, total = state.result()
    assert total == 10
    run = next(run for run in task_runs(client, flow_run_id, 2) if run.name == "adds")
    assert [str(one.id) for one in run.task_inputs["values"]] == [upstream]
