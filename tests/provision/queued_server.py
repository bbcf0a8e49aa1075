"""A real gRPC server that behaves like Cloud TPU's queued resources, and badly when told to."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.cloud import tpu_v2
from google.longrunning import operations_pb2
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from prefect_tpu import LocalFleet, TpuError

State = tpu_v2.QueuedResourceState.State
SERVICE = "google.cloud.tpu.v2.Tpu"
TICK_SECONDS = 0.02
ID = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
HOLDS_QUOTA = frozenset(State) - {State.DELETING}


@dataclass(eq=False)
class Record:
    """One queued resource as the service has it."""

    message: tpu_v2.QueuedResource
    zone: str
    id: str
    since: float
    born: float
    history: list[str] = field(default_factory=list)
    doomed: bool = False

    @property
    def state(self) -> State:
        return self.message.state.state

    @property
    def node(self) -> tpu_v2.Node:
        return self.message.tpu.node_spec[0].node

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.node.labels)

    @property
    def script(self) -> str:
        return self.node.metadata["startup-script"]


class Machines:
    """TPU VMs as hosts of a local fleet; the seam "a TPU VM boots, runs its script and joins Ray"."""

    def __init__(self, fleet: LocalFleet | None) -> None:
        self.fleet = fleet
        self._pool = ThreadPoolExecutor(8, "tpu-vm")
        self._boots: dict[str, Future[bool]] = {}
        self._gone: list[Future[None]] = []

    def boot(self, record: Record) -> None:
        """It runs its startup script, which says where to join and under which name."""
        if self.fleet is None:
            return
        address = re.findall(r"--address=(\S+)", record.script)
        name = re.findall(r"TPU_NAME=(\S+)", record.script)
        assert address == [self.fleet.address], record.script
        assert name == [record.id], record.script
        self._boots[record.id] = self._pool.submit(self._boot, record.id)

    def _boot(self, name: str) -> bool:
        try:
            assert self.fleet is not None
            self.fleet.add_slice(name)
        except TpuError:  # taken away while it started
            return False
        return True

    def pull_the_plug(self, name: str) -> None:
        boot = self._boots.pop(name, None)
        if boot is not None:
            self._gone.append(self._pool.submit(self._remove, name, boot))

    def _remove(self, name: str, boot: Future[bool]) -> None:
        if boot.result() and self.fleet is not None:
            self.fleet.remove_slice(name)

    def settle(self) -> None:
        """Until nothing boots or goes any more."""
        for boot in list(self._boots.values()):
            boot.result()
        for one in self._gone:
            one.result()

    def close(self) -> None:
        for name in list(self._boots):
            self.pull_the_plug(name)
        self._pool.shutdown(wait=True)


class QueuedServer:
    """https://cloud.google.com/tpu/docs/queued-resources: methods, states, errors; with verbs for what goes wrong."""

    def __init__(self, fleet: LocalFleet | None = None, step_seconds: float = 0.1) -> None:
        self.machines = Machines(fleet)
        self.step_seconds = step_seconds
        """In each state on the way."""
        self.lock = threading.RLock()
        self.records: dict[str, Record] = {}
        self.calls: list[tuple[str, Any]] = []
        """Method and request, in order; also those that failed."""
        self.deleted: list[Record] = []
        self._quota: dict[str, int] = {}
        self._stockout: set[str] = set()
        self._waiting: set[str] = set()
        self._preempt_provisioning = 0
        self._boots = True
        self._failures: list[tuple[str, status_pb2.Status]] = []
        self._down_until = 0.0
        self._slow_seconds = 0.0
        self._lost_answers = 0
        self._refuses: status_pb2.Status | None = None
        self._closing = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8, "queued-server"))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._clock = threading.Thread(target=self._run, name="queued-server-clock", daemon=True)
        self._clock.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    # -- faults

    def quota(self, zone: str, slices: int | None) -> None:
        """So many queued resources in this zone, whatever state they are in; None: no limit."""
        with self.lock:
            self._quota.pop(zone, None)
            if slices is not None:
                self._quota[zone] = slices

    def stockout(self, *zones: str) -> None:
        """From now on requests in these zones end FAILED; in no others."""
        with self.lock:
            self._stockout = set(zones)

    def queue_up(self, *zones: str) -> None:
        """From now on requests in these zones wait for resources."""
        with self.lock:
            self._waiting = set(zones)

    def preempt(self, resource_id: str) -> None:
        """The service takes the TPU VMs away: SUSPENDING, then SUSPENDED."""
        with self.lock:
            self._set(self.records[resource_id], State.SUSPENDING)

    def preempt_while_provisioning(self, count: int) -> None:
        """The next ones end SUSPENDED before they are ACTIVE."""
        with self.lock:
            self._preempt_provisioning = count

    def down(self, seconds: float) -> None:
        """UNAVAILABLE for so long."""
        with self.lock:
            self._down_until = time.monotonic() + seconds

    def slow(self, seconds: float) -> None:
        """Every call takes so long."""
        with self.lock:
            self._slow_seconds = seconds

    def lose_answers(self, count: int, method: str = "CreateQueuedResource") -> None:
        """The next calls are done, and then answered UNAVAILABLE."""
        with self.lock:
            self._lost_answers, self._lossy = count, method

    def boot(self, *, works: bool) -> None:
        """Whether TPU VMs join Ray once they are ACTIVE."""
        with self.lock:
            self._boots = works

    def deny(self) -> None:
        """The caller may do nothing, until `allow`."""
        self._refuse("PERMISSION_DENIED", "Permission 'tpu.nodes.create' denied", "IAM_PERMISSION_DENIED")

    def disable(self) -> None:
        """The project has not enabled the API, until `allow`."""
        self._refuse("PERMISSION_DENIED", "Cloud TPU API has not been used in project before", "SERVICE_DISABLED")

    def allow(self) -> None:
        with self.lock:
            self._refuses = None

    def fail(self, method: str, code: str, count: int = 1, reason: str = "", *, violation: str = "") -> None:
        """The next calls of this method fail so."""
        with self.lock:
            self._failures += [(method, _status(code, f"told to fail: {code}", reason, violation))] * count

    def mend(self) -> None:
        """No call is told to fail any more."""
        with self.lock:
            self._failures.clear()

    def _refuse(self, code: str, text: str, reason: str) -> None:
        with self.lock:
            self._refuses = _status(code, text, reason)

    # -- what tests look at

    def states(self) -> dict[str, str]:
        """Of everything that there is, by id."""
        with self.lock:
            return {one.id: one.state.name for one in self.records.values()}

    def active(self) -> list[Record]:
        with self.lock:
            return [one for one in self.records.values() if one.state == State.ACTIVE]

    def until(self, look: Callable[[], Any], seconds: float = 20.0) -> Any:
        """What `look` returns once it is truthy."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, f"not within {seconds:g} s; there is {self.states()}"
            time.sleep(TICK_SECONDS)
        return found

    def count(self, method: str) -> int:
        with self.lock:
            return sum(name == method for name, _ in self.calls)

    def put(self, zone: str, resource_id: str, labels: dict[str, str], state: State = State.ACTIVE) -> Record:
        """Something that was there before, made by whoever."""
        node = tpu_v2.Node(labels=labels, metadata={"startup-script": ""})
        spec = tpu_v2.QueuedResource.Tpu.NodeSpec(node_id=resource_id, node=node)
        message = tpu_v2.QueuedResource(tpu=tpu_v2.QueuedResource.Tpu(node_spec=[spec]))
        with self.lock:
            record = self._add(f"projects/my-project/locations/{zone}", zone, resource_id, message)
            record.message.state = tpu_v2.QueuedResourceState(state=state)
            record.since = float("inf")
            return record

    def close(self) -> None:
        self._closing.set()
        self._clock.join()
        self._server.stop(0.2).wait()
        self.machines.close()

    # -- the service

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, tuple[Callable[..., Any], Any, Any]] = {
            "CreateQueuedResource": (self._create, tpu_v2.CreateQueuedResourceRequest, None),
            "DeleteQueuedResource": (self._delete, tpu_v2.DeleteQueuedResourceRequest, None),
            "GetQueuedResource": (self._get, tpu_v2.GetQueuedResourceRequest, tpu_v2.QueuedResource),
            "ListQueuedResources": (
                self._list, tpu_v2.ListQueuedResourcesRequest, tpu_v2.ListQueuedResourcesResponse,
            ),
        }  # fmt: skip
        handlers = {}
        for name, (do, request, response) in methods.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                self._behave(name, do),
                request_deserializer=request.deserialize,
                response_serializer=operations_pb2.Operation.SerializeToString
                if response is None
                else response.serialize,
            )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _behave(self, name: str, do: Callable[..., Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            with self.lock:
                self.calls.append((name, request))
                slow, down = self._slow_seconds, time.monotonic() < self._down_until
                told = next((one for one in self._failures if one[0] == name), None)
                if told is not None:
                    self._failures.remove(told)
                refuses = self._refuses
            self._closing.wait(slow)
            if down:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the service is down")
            for status in (told[1] if told else None, refuses):
                if status is not None:
                    context.abort_with_status(rpc_status.to_status(status))
            with self.lock:
                answer = do(request, context)
                lost = self._lost_answers > 0 and self._lossy == name
                self._lost_answers -= lost
            if lost:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            return answer

        return handle

    def _create(self, request: tpu_v2.CreateQueuedResourceRequest, context: Any) -> operations_pb2.Operation:
        zone, resource_id = request.parent.rpartition("/")[2], request.queued_resource_id
        message = request.queued_resource
        specs = message.tpu.node_spec
        if not ID.fullmatch(resource_id) or len(specs) != 1 or specs[0].parent != request.parent:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad id or node spec")
        if not specs[0].node.runtime_version or not specs[0].node.accelerator_config.topology:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no runtime version or topology")
        if "spot" not in message and "guaranteed" not in message:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no tier")
        if resource_id in self.records:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{resource_id} exists")
        held = sum(one.zone == zone and one.state in HOLDS_QUOTA for one in self.records.values())
        if held >= self._quota.get(zone, 10**9):
            quota = f"Quota limit 'TPUV4PerProjectPerZoneForTPUAPI' exceeded. Limit: {self._quota[zone]} in {zone}"
            status = _status("RESOURCE_EXHAUSTED", quota, "", quota)
            context.abort_with_status(rpc_status.to_status(status))
        record = self._add(request.parent, zone, resource_id, tpu_v2.QueuedResource(message))
        return _operation(record, "create")

    def _add(self, parent: str, zone: str, resource_id: str, message: tpu_v2.QueuedResource) -> Record:
        now = time.monotonic()
        message.name = f"{parent}/queuedResources/{resource_id}"
        tpu_v2.QueuedResource.pb(message).create_time.GetCurrentTime()
        record = self.records[resource_id] = Record(message, zone, resource_id, now, now)
        self._set(record, State.CREATING)
        return record

    def _delete(self, request: tpu_v2.DeleteQueuedResourceRequest, context: Any) -> operations_pb2.Operation:
        record = self._find(request.name, context)
        if record.state == State.ACTIVE and not request.force:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it has nodes; use force")
        if record.state != State.DELETING:
            self._set(record, State.DELETING)
        return _operation(record, "delete")

    def _get(self, request: tpu_v2.GetQueuedResourceRequest, context: Any) -> tpu_v2.QueuedResource:
        return self._find(request.name, context).message

    def _list(self, request: tpu_v2.ListQueuedResourcesRequest, context: Any) -> tpu_v2.ListQueuedResourcesResponse:
        zone, start = request.parent.rpartition("/")[2], int(request.page_token or 0)
        there = [one.message for one in self.records.values() if one.zone == zone]
        page = there[start : start + min(request.page_size or 50, 3)]  # short pages, so that paging is real
        after = start + len(page)
        token = str(after) if after < len(there) else ""
        return tpu_v2.ListQueuedResourcesResponse(queued_resources=page, next_page_token=token)

    def _find(self, name: str, context: Any) -> Record:
        record = self.records.get(name.rpartition("/")[2])
        if record is None or record.message.name != name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{name} not found")
            raise AssertionError
        return record

    # -- time

    def _run(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            with self.lock:
                for record in list(self.records.values()):
                    self._age(record)

    def _age(self, record: Record) -> None:
        now = time.monotonic()
        policy = tpu_v2.QueuedResource.pb(record.message).queueing_policy
        limit = policy.valid_until_duration.seconds if policy.HasField("valid_until_duration") else float("inf")
        if record.state == State.WAITING_FOR_RESOURCES and now - record.born >= limit:
            self._fail(record, _status("DEADLINE_EXCEEDED", "valid until is over"))
            return
        if now - record.since < self.step_seconds:
            return
        match record.state:
            case State.CREATING:
                self._set(record, State.ACCEPTED)
            case State.ACCEPTED:
                self._set(record, State.WAITING_FOR_RESOURCES)
            case State.WAITING_FOR_RESOURCES if record.zone not in self._waiting:
                self._set(record, State.PROVISIONING)
            case State.PROVISIONING if record.zone in self._stockout:
                text = f'There is no more capacity in the zone "{record.zone}"'
                self._fail(record, _status("RESOURCE_EXHAUSTED", text))
            case State.PROVISIONING if self._preempt_provisioning > 0:
                self._preempt_provisioning -= 1
                self._set(record, State.SUSPENDING)
            case State.PROVISIONING:
                self._set(record, State.ACTIVE)
                if self._boots:
                    self.machines.boot(record)
            case State.SUSPENDING:
                self._set(record, State.SUSPENDED)
            case State.DELETING:
                del self.records[record.id]
                self.deleted.append(record)

    def _set(self, record: Record, state: State) -> None:
        if state in (State.SUSPENDING, State.DELETING):
            self.machines.pull_the_plug(record.id)
        record.message.state = tpu_v2.QueuedResourceState(state=state)
        record.since = time.monotonic()
        record.history.append(state.name)

    def _fail(self, record: Record, status: status_pb2.Status) -> None:
        self._set(record, State.FAILED)
        tpu_v2.QueuedResource.pb(record.message).state.failed_data.error.CopyFrom(status)


def _status(code: str, text: str, reason: str = "", violation: str = "") -> status_pb2.Status:
    details = []
    if reason:
        info = any_pb2.Any()
        info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="googleapis.com"))
        details.append(info)
    if violation:
        quota = any_pb2.Any()
        quota.Pack(error_details_pb2.QuotaFailure(violations=[{"subject": "my-project", "description": violation}]))
        details.append(quota)
    return status_pb2.Status(code=code_pb2.Code.Value(code), message=text, details=details)


def _operation(record: Record, verb: str) -> operations_pb2.Operation:
    name = record.message.name.replace("queuedResources", "operations") + f"-{verb}"
    operation = operations_pb2.Operation(name=name, done=False)
    operation.metadata.Pack(
        tpu_v2.OperationMetadata.pb(tpu_v2.OperationMetadata(target=record.message.name, verb=verb))
    )
    return operation


@contextmanager
def queued_server(fleet: LocalFleet | None = None, step_seconds: float = 0.1) -> Iterator[QueuedServer]:
    server = QueuedServer(fleet, step_seconds)
    try:
        yield server
    finally:
        server.close()
