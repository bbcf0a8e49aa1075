"""A fleet that asks Google Cloud for its slices when gangs want them: queued resources that join a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_tpu.core.topology import SliceShape
from prefect_tpu.fleets.fleet import Demand, Say
from prefect_tpu.fleets.queued_spec import QueuedSpec
from prefect_tpu.options.given import GivenOptions


@dataclass(frozen=True, slots=True, repr=False)
class QueuedResourceFleet(QueuedSpec):
    """TPU slices that are created when gangs want them, and deleted when nobody does: Cloud TPU's queued resources.

    Each slice is one queued resource. Its TPU VMs run a script at their start that makes them hosts of the Ray cluster
    at `ray_address`. Everything that a process has created is deleted when the process ends; what a killed one has
    left behind is deleted by the next.

    A value: equal configurations share their slices inside a process.

        fleet = QueuedResourceFleet(
            "my-project", ("us-east5-b", "us-east5-c"), "10.0.0.2:6379",
            service_account="tpu-hosts@my-project.iam.gserviceaccount.com",
            token_secret="projects/my-project/secrets/ray-token",
            host_package="gs://my-bucket/prefect_tpu-0.1.0-py3-none-any.whl",
        )

    Args:
        project: Google Cloud project id.
        zones: where slices may be, in order of preference.
        ray_address: "host:port" of Ray's head, as the driver and the TPU VMs reach it; "auto" for the cluster that the
            driver's machine is part of.
        name: of this fleet in ids and labels. Fleets that share a name in a project delete what dead runs of each
            other have left behind.
        provisioning: "spot", "on-demand" or "reservation".
        reservation_name: for "reservation".
        runtime_version: of the TPU VMs; None for what Google recommends for the accelerator type.
        valid_until_seconds: a request that is not fulfilled by then is given up, and the next zone asked; None: never.
        network, subnetwork: of the TPU VMs; None for the project's default.
        external_ips: whether TPU VMs have external addresses; without, their network needs a way to the packages.
        service_account: of the TPU VMs; None for the project's default, which mostly may do far more than it should.
        startup_script: its text, in place of the package's own; may have {{ray_address}}, {{slice_name}},
            {{python_version}}, {{packages}}, {{host_lock}} and {{token_secret}}.
        host_packages: installed on the TPU VMs beside Ray, JAX and prefect_tpu, as for pip.
        labels: of every TPU VM, beside the fleet's own.
        join: start a Ray node without resources on the driver's machine first.
        namespace: Ray's namespace for what prefect_tpu starts.
        credentials: a GcpCredentials block of prefect-gcp, or credentials of google.auth; None for the environment's
            own identity. Never shown, and left out when the fleet is pickled.
        endpoint: "host:port" of another API endpoint; None for Google's.
        idle_release_seconds: slices that no gang wants are deleted after it.
        join_timeout_seconds: from ACTIVE to a whole slice in Ray; one that takes longer is replaced.
        zone_pause_seconds: a zone without capacity is asked again after it, then after twice as long, and so on.
        poll_seconds: between two looks at the API.
        api_timeout_seconds: of one try of a call to the API.
        api_retry_seconds: how long a call is tried again that got 429 or 5xx.
        close_timeout_seconds: for deleting everything when the process ends.
        owner_silence_seconds: what a run on another machine has created is deleted when the Ray cluster has heard
            nothing of that run for so long.
        reap_after_seconds: what runs on other machines have left is deleted when it is so old, longer than any run may
            take; None: only by that silence.
        host_package: where TPU VMs get prefect_tpu: "gs://BUCKET/FILE.whl", "https://HOST/FILE.whl#sha256=...",
            "git+https://HOST/REPOSITORY@COMMIT", or a version in an index in which the name is yours; None for where
            the driver's own was installed from, if that is such a wheel or commit.
        host_lock: address of a lock file with hashes, "gs://..." or "https://...", of all that is installed; in place
            of host_packages.
        token_secret: name in Secret Manager of the token that the Ray cluster asks for, "projects/P/secrets/S"; read
            by the TPU VMs with their service account.
        unprotected_ray: join a Ray that asks for no token: whoever reaches a TPU VM then runs code on all of them.

    Raises:
        ConfigurationError: a value that cannot be right.
    """

    @property
    def address(self) -> str:
        """Of the Ray cluster."""
        return self.ray_address

    def options(self) -> GivenOptions:
        """It makes slices of any kind; whether they can be taken away is known."""
        return {"preemptible": self.preemptible}

    def connect(self, say: Say | None = None) -> None:
        """Connect this process to the Ray cluster. Asks for no slices.

        Raises:
            ConfigurationError: google-cloud-tpu is missing, there are no credentials, Ray's head does not answer, or
                it is not said what TPU VMs install and who gets into their Ray.
        """
        from prefect_tpu.fleets import queued_keepers

        queued_keepers.connect(self, say)

    def demand(self, shape: SliceShape, num_slices: int, run_id: str, say: Say) -> Demand | None:
        """Have so many slices more, until the demand is withdrawn.

        Raises:
            ConfigurationError: Cloud TPU has no such slices, or TPU VMs cannot reach the Ray cluster.
        """
        from prefect_tpu.fleets import queued_keepers

        asked = self.request(shape, queued_keepers.address_for_hosts(self), run_id)
        say(f"{num_slices} {shape} slices are wanted of {self.describe()}")
        return queued_keepers.keeper(self).demand(asked, num_slices)

    def close(self) -> None:
        """Delete everything that this process has created, within `close_timeout_seconds`; also done at its end."""
        from prefect_tpu.fleets import queued_keepers

        queued_keepers.close(self)

    def reap(self, *, elsewhere_too: bool = False) -> list[str]:
        """Delete what dead runs of fleets of this name have left behind; needs no Ray cluster.

        Args:
            elsewhere_too: also what was created on other machines or in other containers, of which nobody here can
                know whether they live. Say so only if no run of this fleet is alive.

        Returns:
            The ids of what was deleted.

        Raises:
            ConfigurationError: google-cloud-tpu is missing, or there are no credentials.
            ProvisioningError: the API refuses.
        """
        from prefect_tpu.fleets import queued_keepers

        return queued_keepers.reap(self, elsewhere_too=elsewhere_too)
