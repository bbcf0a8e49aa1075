"""Keeps as many queued resources as are wanted: a loop that looks, decides (`plan.py`) and acts."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import replace

from prefect_tpu.provision import plan, prospects, reaping
from prefect_tpu.provision.demand import SliceDemand
from prefect_tpu.provision.interfaces import Cloud, RayView
from prefect_tpu.provision.owner import FLEET_LABEL, KIND_LABEL, OWNER_LABEL, Owner
from prefect_tpu.provision.plan import Create, Delete, Memory, Resource, Rules, View
from prefect_tpu.provision.problems import Cause, CloudError
from prefect_tpu.provision.request import SliceRequest

log = logging.getLogger("prefect_tpu.provision")

UNSEEN_SECONDS = 60.0
"""How long the service's lists may lag behind what it has acknowledged."""
CLOSE_POLL_SECONDS = 0.5


class Keeper:
    """The queued resources of one fleet in this process. `demand` and what demands do may come from any thread.

    Args:
        name: of the fleet.
        zones: in order of preference.
        cloud: where they are.
        ray: what is up.
        rules: the limits.
        poll_seconds: between two looks.
        close_timeout_seconds: for deleting everything in the end.
        owner_silence_seconds: owners elsewhere that were heard of in the Ray cluster are gone after such a silence.
        reap_after_seconds: what owners elsewhere have left is deleted when it is so old; None: never.
    """

    def __init__(
        self,
        *,
        name: str,
        zones: tuple[str, ...],
        cloud: Cloud,
        ray: RayView,
        rules: Rules,
        poll_seconds: float,
        close_timeout_seconds: float,
        owner_silence_seconds: float,
        reap_after_seconds: float | None = None,
    ) -> None:
        self.name, self.zones, self.cloud, self.ray, self.rules = name, zones, cloud, ray, rules
        self.poll_seconds, self.close_timeout_seconds = poll_seconds, close_timeout_seconds
        self.reap_after_seconds = reap_after_seconds
        self.owner = Owner.new()
        self._listener = reaping.Listener(owner_silence_seconds)
        self._lock = threading.RLock()
        """Guards what follows up to `_view`; the rest belongs to the keeper's thread."""
        self._demands: list[SliceDemand] = []
        self._memory = Memory()
        self._view: View | None = None
        self._known: dict[str, list[Resource]] = {}
        self._created: dict[str, tuple[Resource, float]] = {}
        self._deleted: dict[str, float] = {}
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # -- for gangs

    def demand(self, asked: SliceRequest, count: int) -> SliceDemand:
        """Keep so many slices more, until it is withdrawn."""
        wants = SliceDemand(asked, count, self)
        with self._lock:
            self._demands.append(wants)
            self._memory = plan.asked_anew(self._memory)
            self._view = None  # what was seen before does not count against who asks now
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"prefect-tpu-keeper-{self.name}", daemon=True)
                self._thread.start()
        self._wake.set()
        return wants

    def withdraw(self, wants: SliceDemand) -> None:
        """They are not wanted any more; they stay for `idle_release_seconds`, for whoever comes next."""
        with self._lock:
            if wants in self._demands:
                self._demands.remove(wants)
        self._wake.set()

    def hopeless(self, wants: SliceDemand) -> str:
        """Why they will not come, "" as long as they may."""
        with self._lock:
            if self._stopped.is_set():
                return "the fleet was closed"
            if self._view is None:
                return ""
            view = self._view_of(self._view, wants)
            return prospects.hopeless(view, self._memory, self.rules, askers=len(self._demands))

    def describe(self, wants: SliceDemand) -> str:
        """How far it is."""
        with self._lock:
            if self._view is None:
                return "the API is being asked"
            return prospects.describe(self._view_of(self._view, wants), self._memory)

    def close(self) -> list[str]:
        """End, and delete everything that is ours; what could not be deleted in time is named in a warning.

        Safe to call twice.

        Returns:
            The ids of what is left.
        """
        if self._stopped.is_set():
            return []
        self._stopped.set()
        self._wake.set()
        give_up = time.monotonic() + self.close_timeout_seconds
        self.cloud.hurry(self.close_timeout_seconds)
        left: list[str] = []
        if self._thread is not None:
            self._thread.join(self.close_timeout_seconds)
            left = self._delete_all(give_up)
        if left:
            log.warning(
                "%s could not be deleted within %g s (close_timeout_seconds), and cost money until they are. Delete "
                "them: `gcloud compute tpus queued-resources delete --force ID`, or call the fleet's reap()",
                ", ".join(left),
                self.close_timeout_seconds,
            )
        self.owner.end()
        self.cloud.close()
        return left

    # -- the loop

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self.step()
            except Exception:  # the thread must go on, or what it keeps would cost money for ever
                log.exception("looking after the queued resources of %s failed; tried again", self.name)
            self._wake.wait(self.poll_seconds)

    def step(self) -> None:
        """Look, decide and act, once."""
        mine, unread = self._read()
        ray = self.ray.look()
        while not self._stopped.is_set():
            with self._lock:
                view = View(time.monotonic(), tuple(mine), self._wanted(), self.zones, unread, ray)
                decision = plan.decide(view, self._memory, self.rules)
                self._memory, self._view = decision.memory, view
                # Under the lock: who comes now and wants slices must not be given those that go.
                deletes = self._retire(decision.deletes)
            for one in deletes:
                self._delete(one)
            if all(self._create(one, mine) for one in decision.creates):
                return
            mine = self._mine([*mine])  # a zone has refused: the next one is asked at once

    def _read(self) -> tuple[list[Resource], frozenset[str]]:
        """Ours, and the zones that could not be read. Deletes what is left of owners that are gone."""
        unread = set()
        for zone in self.zones:
            self._beat()
            try:
                self._known[zone] = self.cloud.list(zone, self.name)
            except CloudError as error:
                unread.add(zone)
                self._refused(zone, "", error)
        now = time.monotonic()
        found = [one for resources in self._known.values() for one in resources]
        seen = {one.id for one in found}
        self._created = {
            id_: (new, until)
            for id_, (new, until) in self._created.items()
            if id_ not in seen and (until > now or new.zone in unread)
        }
        self._deleted = {id_: until for id_, until in self._deleted.items() if id_ in seen and until > now}
        mine = self._mine([one for one in found if one.owner == str(self.owner)])
        others = [self._as_it_will_be(one) for one in found if one.owner != str(self.owner)]
        left = reaping.left_behind(
            others,
            reap_after_seconds=self.reap_after_seconds,
            unix_now=time.time(),
            silent=lambda owner: self._listener.silent(owner, self.ray.heard(owner), time.monotonic()),
        )
        for one in left:
            self._delete(Delete(one, "whoever asked for it is gone"))
        return mine, frozenset(unread)

    def _retire(self, deletes: tuple[Delete, ...]) -> list[Delete]:
        """Deletions that may go on: what has been leased since we looked stays."""
        leasable = [one.resource.id for one in deletes if one.in_ray]
        if not leasable:
            return list(deletes)
        ray = self.ray.look() or {}
        leasable = [id_ for id_ in leasable if ray.get(id_) is False]
        self.ray.retire(leasable)
        ray = self.ray.look() or {}
        return [
            one for one in deletes if not one.in_ray or (one.resource.id in leasable and not ray.get(one.resource.id))
        ]

    def _create(self, one: Create, mine: list[Resource]) -> bool:
        """Whether no other zone has to be asked."""
        there_are = len([two for two in self._mine(mine) if two.kind == one.kind and two.state in plan.LIVE])
        asked = self._asked_for(one.kind, there_are)
        if asked is None or self._stopped.is_set():
            return True
        resource_id = f"{self.name}-{uuid.uuid4().hex[:8]}"
        ours = {FLEET_LABEL: self.name, OWNER_LABEL: str(self.owner), KIND_LABEL: one.kind}
        asked = replace(asked, labels=tuple(sorted({**dict(asked.labels), **ours}.items())))
        # Before the call: if its answer is lost, it may be there all the same.
        new = Resource(one.zone, resource_id, "CREATING", one.kind, str(self.owner))
        self._created[resource_id] = (new, time.monotonic() + UNSEEN_SECONDS)
        self._beat()
        try:
            self.cloud.create(one.zone, resource_id, asked)
        except CloudError as error:
            if error.problem.cause is not Cause.AWAY:
                del self._created[resource_id]
            self._refused(one.zone, one.kind, error)
            return False
        log.info("%s asked for in %s: %s %s", resource_id, one.zone, asked.provisioning, one.kind)
        return True

    def _delete(self, one: Delete) -> bool:
        self._beat()
        try:
            self.cloud.delete(one.resource.zone, one.resource.id)
        except CloudError as error:
            log.warning("%s", error)
            return False
        log.info("%s in %s deleted: %s", one.resource.id, one.resource.zone, one.why)
        self._created.pop(one.resource.id, None)
        self._deleted[one.resource.id] = time.monotonic() + UNSEEN_SECONDS
        return True

    def _delete_all(self, give_up: float) -> list[str]:
        while True:
            mine, _ = self._read()  # of a zone that cannot be read, what was last known
            left = [
                one.id
                for one in mine
                if one.state not in plan.LEAVING and not self._delete(Delete(one, "the fleet is closed"))
            ]
            if not left or time.monotonic() >= give_up:
                return left
            time.sleep(CLOSE_POLL_SECONDS)

    # -- small parts

    def _beat(self) -> None:
        """A sign of life before every call to the API, as each may take long; none any more in the end."""
        if not self._stopped.is_set():
            self.ray.beat(str(self.owner))

    def _refused(self, zone: str, kind: str, error: CloudError) -> None:
        with self._lock:
            before = self._memory
            self._memory = plan.refused(before, zone, kind, error.problem, time.monotonic(), self.rules)
        if self._memory is not before:
            log.warning("%s", error)

    def _wanted(self) -> dict[str, int]:
        wanted: dict[str, int] = {}
        for one in self._demands:
            wanted[one.asked.kind] = wanted.get(one.asked.kind, 0) + one.count
        return wanted

    def _view_of(self, view: View, wants: SliceDemand) -> View:
        """What there is of this kind, for all who want it."""
        kind = wants.asked.kind
        return replace(view, wanted={kind: self._wanted().get(kind, 0)}, now=time.monotonic())

    def _mine(self, listed: list[Resource]) -> list[Resource]:
        """Ours, with what the service has acknowledged and does not list yet."""
        ids = {one.id for one in listed}
        new = [one for one, _ in self._created.values() if one.id not in ids]
        return [self._as_it_will_be(one) for one in (*listed, *new)]

    def _as_it_will_be(self, one: Resource) -> Resource:
        return replace(one, state="DELETING") if one.id in self._deleted and one.state not in plan.LEAVING else one

    def _asked_for(self, kind: str, there_are: int) -> SliceRequest | None:
        """What the gang wants whose turn it is, so that the labels name its run."""
        with self._lock:
            wants = [one for one in self._demands if one.asked.kind == kind]
        for one in wants:
            if there_are < one.count:
                return one.asked
            there_are -= one.count
        return wants[-1].asked if wants else None
