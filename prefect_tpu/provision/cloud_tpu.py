"""Queued resources of Cloud TPU, by Google's own client: create, list, delete, and why a call failed.

https://cloud.google.com/tpu/docs/queued-resources. Of the API's versions v2, the general one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.api_core.retry import Retry
from google.api_core.timeout import ConstantTimeout
from google.auth.exceptions import GoogleAuthError
from google.cloud import tpu_v2
from google.cloud.tpu_v2.services.tpu.transports import TpuGrpcTransport
from google.oauth2 import service_account
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, insecure_channel

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.linux import probe
from prefect_tpu.provision.owner import FLEET_LABEL, KIND_LABEL, OWNER_LABEL
from prefect_tpu.provision.plan import Resource
from prefect_tpu.provision.problems import Cause, CloudError, Problem, cause_of, explain
from prefect_tpu.provision.request import SliceRequest

RETRY_FIRST_SECONDS = 1.0
RETRY_LONGEST_SECONDS = 10.0
RETRY_MULTIPLIER = 1.6
"""Between tries of one call; the client's own Retry adds the jitter."""
PAGE_SIZE = 100
CLOUD_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
"""What the TPU VMs' service account may do is said by its roles."""
TYPES = {
    "v2": tpu_v2.AcceleratorConfig.Type.V2,
    "v3": tpu_v2.AcceleratorConfig.Type.V3,
    "v4": tpu_v2.AcceleratorConfig.Type.V4,
    "v5litepod": tpu_v2.AcceleratorConfig.Type.V5LITE_POD,
    "v5p": tpu_v2.AcceleratorConfig.Type.V5P,
    "v6e": tpu_v2.AcceleratorConfig.Type.V6E,
}


def identity_of(key: dict[str, str]) -> Any:
    """google.auth's credentials of a service account, from the content of its key file."""
    credentials: Any = service_account.Credentials
    return credentials.from_service_account_info(key, scopes=[CLOUD_SCOPE])


@dataclass(slots=True)
class QueuedResources:
    """The queued resources of one project.

    Args:
        project: its id.
        credentials: of google.auth; None for the environment's own.
        endpoint: "host:port" of another API endpoint, "" for Google's; on this machine itself without TLS.
        call_timeout_seconds: one try of one call.
        retry_seconds: all tries of one call.

    Raises:
        ConfigurationError: no credentials.
    """

    project: str
    credentials: Any = None
    endpoint: str = ""
    call_timeout_seconds: float = 30.0
    retry_seconds: float = 60.0
    _client: Any = None

    def __post_init__(self) -> None:
        if self.endpoint and probe.is_loopback(self.endpoint.rpartition(":")[0]):
            self._client = tpu_v2.TpuClient(transport=TpuGrpcTransport(channel=insecure_channel(self.endpoint)))
            return
        options = ClientOptions(api_endpoint=self.endpoint or None)
        try:
            self._client = tpu_v2.TpuClient(credentials=self.credentials, client_options=options)
        except GoogleAuthError as error:
            raise ConfigurationError(
                f"no credentials for Google Cloud: {error} Give the fleet a GcpCredentials block, run on a machine "
                "with a service account, or `gcloud auth application-default login`."
            ) from error

    def list(self, zone: str, fleet: str) -> list[Resource]:
        """Every queued resource of this fleet in a zone, whoever's it is.

        Raises:
            CloudError: it cannot be read.
        """
        request = tpu_v2.ListQueuedResourcesRequest(parent=self._parent(zone), page_size=PAGE_SIZE)

        def read() -> list[Resource]:
            # Every page is a call of its own with the same retry and time limit.
            pages = self._client.list_queued_resources(request, **self._how())
            return [self._resource(zone, one) for one in pages if _labels(one).get(FLEET_LABEL) == fleet]

        found: list[Resource] = self._call(zone, "list queued resources", read)
        return found

    def create(self, zone: str, resource_id: str, asked: SliceRequest) -> None:
        """Ask for a slice; it comes later. An earlier try that got through is no error.

        Raises:
            CloudError: refused, or no answer.
        """
        request = tpu_v2.CreateQueuedResourceRequest(
            parent=self._parent(zone),
            queued_resource_id=resource_id,
            queued_resource=self._message(zone, resource_id, asked),
            request_id=str(uuid.uuid4()),
        )

        def create() -> None:
            try:
                self._client.create_queued_resource(request, **self._how())
            except exceptions.AlreadyExists:
                return  # ids are random: it was an earlier try of this call, whose answer was lost

        self._call(zone, f"create {asked.provisioning} {asked.accelerator_type} {asked.topology}", create)

    def delete(self, zone: str, resource_id: str) -> None:
        """Delete a queued resource and its TPU VMs; they go later. One that is gone is no error.

        Raises:
            CloudError: refused, or no answer.
        """
        name = self._client.queued_resource_path(self.project, zone, resource_id)
        request = tpu_v2.DeleteQueuedResourceRequest(name=name, force=True, request_id=str(uuid.uuid4()))

        def delete() -> None:
            try:
                self._client.delete_queued_resource(request, **self._how())
            except exceptions.NotFound as error:
                if error.reason is not None:  # of the project or the API, not of the resource
                    raise

        self._call(zone, f"delete {resource_id}", delete)

    def hurry(self, seconds: float) -> None:
        """No call may take longer than this from now on."""
        self.retry_seconds = min(self.retry_seconds, seconds)
        self.call_timeout_seconds = min(self.call_timeout_seconds, seconds)

    def close(self) -> None:
        """Close the connection."""
        self._client.transport.close()

    def _parent(self, zone: str) -> str:
        return str(self._client.common_location_path(self.project, zone))

    def _how(self) -> dict[str, Any]:
        retry = Retry(
            predicate=_transient,
            initial=RETRY_FIRST_SECONDS,
            maximum=RETRY_LONGEST_SECONDS,
            multiplier=RETRY_MULTIPLIER,
            timeout=self.retry_seconds,
        )
        return {"retry": retry, "timeout": ConstantTimeout(self.call_timeout_seconds)}

    def _call(self, zone: str, doing: str, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except exceptions.RetryError as error:
            cause = error.cause
            if isinstance(cause, exceptions.GoogleAPICallError):
                raise CloudError(self._explain(zone, doing, cause)) from error
            problem = explain("UNAVAILABLE", str(error), project=self.project, zone=zone, doing=doing)
            raise CloudError(problem) from error
        except exceptions.GoogleAPICallError as error:
            raise CloudError(self._explain(zone, doing, error)) from error
        except GoogleAuthError as error:
            code = "UNAVAILABLE" if getattr(error, "retryable", False) else "UNAUTHENTICATED"
            raise CloudError(explain(code, str(error), project=self.project, zone=zone, doing=doing)) from error

    def _explain(self, zone: str, doing: str, error: exceptions.GoogleAPICallError) -> Problem:
        status = error.grpc_status_code
        return explain(
            status.name if status is not None else "UNKNOWN",
            error.message,
            project=self.project,
            zone=zone,
            doing=doing,
            reason=error.reason or "",
            violations=_violations(error.details),
        )

    def _resource(self, zone: str, one: tpu_v2.QueuedResource) -> Resource:
        labels, state = _labels(one), one.state.state
        problem = None
        resource_id = one.name.rpartition("/")[2]
        if state == tpu_v2.QueuedResourceState.State.FAILED:
            problem = self._explain_failed(
                zone, resource_id, tpu_v2.QueuedResourceState.pb(one.state).failed_data.error
            )
        return Resource(
            zone=zone,
            id=resource_id,
            state=tpu_v2.QueuedResourceState.State(state).name,
            kind=labels.get(KIND_LABEL, ""),
            owner=labels.get(OWNER_LABEL, ""),
            created_unix_seconds=one.create_time.timestamp() if one.create_time else 0.0,
            problem=problem,
        )

    def _explain_failed(self, zone: str, resource_id: str, error: status_pb2.Status) -> Problem:
        code = next((one.name for one in StatusCode if one.value[0] == error.code), "UNKNOWN")
        details: list[Any] = []
        reason = ""
        for packed in error.details:
            quota, info = error_details_pb2.QuotaFailure(), error_details_pb2.ErrorInfo()
            if packed.Unpack(quota):
                details.append(quota)
            elif packed.Unpack(info):
                reason = info.reason
        return explain(
            code,
            error.message,
            project=self.project,
            zone=zone,
            doing=f"provision {resource_id}",
            reason=reason,
            violations=_violations(details),
            of_resource=True,
        )

    def _message(self, zone: str, resource_id: str, asked: SliceRequest) -> tpu_v2.QueuedResource:
        node = tpu_v2.Node(
            accelerator_config=tpu_v2.AcceleratorConfig(type_=TYPES[asked.accelerator_type], topology=asked.topology),
            runtime_version=asked.runtime_version,
            network_config=tpu_v2.NetworkConfig(
                network=asked.network, subnetwork=asked.subnetwork, enable_external_ips=asked.external_ips
            ),
            labels=dict(asked.labels),
            metadata={"startup-script": asked.script(resource_id)},
        )
        if asked.service_account:
            node.service_account = tpu_v2.ServiceAccount(email=asked.service_account, scope=[CLOUD_SCOPE])
        if asked.provisioning == "reservation":
            node.scheduling_config = tpu_v2.SchedulingConfig(reserved=True)
        spec = tpu_v2.QueuedResource.Tpu.NodeSpec(parent=self._parent(zone), node_id=resource_id, node=node)
        message = tpu_v2.QueuedResource(tpu=tpu_v2.QueuedResource.Tpu(node_spec=[spec]))
        if asked.provisioning == "spot":
            message.spot = tpu_v2.QueuedResource.Spot()
        else:
            message.guaranteed = tpu_v2.QueuedResource.Guaranteed()
        if asked.provisioning == "reservation":
            name = asked.reservation_name
            message.reservation_name = name if "/" in name else f"{self._parent(zone)}/reservations/{name}"
        if asked.valid_until_seconds is not None:
            until = duration_pb2.Duration(seconds=round(asked.valid_until_seconds))
            message.queueing_policy = tpu_v2.QueuedResource.QueueingPolicy(valid_until_duration=until)
        return message


def _transient(error: BaseException) -> bool:
    """429 that is a rate, not a quota; and 5xx but "not implemented"."""
    if isinstance(error, exceptions.TooManyRequests):
        return cause_of("RESOURCE_EXHAUSTED", error.reason or "", _violations(error.details)) is not Cause.QUOTA
    return isinstance(error, exceptions.ServerError) and not isinstance(error, exceptions.MethodNotImplemented)


def _labels(one: tpu_v2.QueuedResource) -> dict[str, str]:
    """Of its one node; of none if it has several, which we never make."""
    specs = one.tpu.node_spec
    return dict(specs[0].node.labels) if len(specs) == 1 else {}


def _violations(details: Iterable[Any]) -> list[str] | None:
    found = [one for one in details if isinstance(one, error_details_pb2.QuotaFailure)]
    return (
        [violation.description or violation.subject for one in found for violation in one.violations] if found else None
    )
