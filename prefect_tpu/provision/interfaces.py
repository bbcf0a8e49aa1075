"""What a keeper needs of the world: a cloud, and what is known of the Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prefect_tpu.provision.plan import Resource
from prefect_tpu.provision.request import SliceRequest


class Cloud(Protocol):
    """Queued resources, as `cloud_tpu.QueuedResources` has them. Calls raise CloudError."""

    def list(self, zone: str, fleet: str) -> list[Resource]:
        """All of this fleet."""

    def create(self, zone: str, resource_id: str, asked: SliceRequest) -> None:
        """Ask for one."""

    def delete(self, zone: str, resource_id: str) -> None:
        """Delete one."""

    def hurry(self, seconds: float) -> None:
        """No call may take longer than this from now on."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True, slots=True)
class RayView:
    """What is asked of the Ray cluster; by functions, as this layer knows no Ray.

    Attributes:
        look: slices that are whole in Ray, and whether each is in use; None if Ray cannot be asked.
        retire: no gang may lease these slices from now on.
        beat: leave a sign of life of this owner in the cluster.
        heard: the last one of an owner, another text each time; None if there is none, or Ray cannot be asked.
    """

    look: Callable[[], Mapping[str, bool] | None]
    retire: Callable[[Sequence[str]], None]
    beat: Callable[[str], None] = lambda owner: None  # noqa: ARG005
    heard: Callable[[str], str | None] = lambda owner: None  # noqa: ARG005
