"""The variables that a host process gets."""

from __future__ import annotations

import pytest

from prefect_tpu.core.environment import gang_environment
from prefect_tpu.core.gang import Gang, Host, Slice
from prefect_tpu.core.topology import SliceShape

SHAPE = SliceShape(accelerator_type="v4", topology="2x2x2", chips_per_host=4, hosts=2, pod_type="v4-16")


def gang(num_slices: int) -> Gang:
    return Gang(
        tuple(
            Slice(f"slice-{s}", tuple(Host(f"{s}{h}", h, f"10.0.{s}.{h}", 4) for h in range(2)))
            for s in range(num_slices)
        )
    )


def test_two_slices_have_megascale_variables_of_the_coordinator() -> None:
    """Every host names slice 0 host 0, and its own slice."""
    two = gang(2)
    env = gang_environment(two, two.members[3], SHAPE, megascale_port=1234, user_env={})
    assert env["MEGASCALE_COORDINATOR_ADDRESS"] == "10.0.0.0"
    assert (env["MEGASCALE_PORT"], env["MEGASCALE_NUM_SLICES"], env["MEGASCALE_SLICE_ID"]) == ("1234", "2", "1")


def test_one_slice_has_no_megascale_variables() -> None:
    """MegaScale is for more than one slice."""
    one = gang(1)
    env = gang_environment(one, one.members[0], SHAPE, megascale_port=1234, user_env={})
    assert not [name for name in env if name.startswith("MEGASCALE")]


def test_variables_that_users_of_the_earlier_system_rely_on() -> None:
    """EXECUTOR_CALL_* and TPU_*, and never TPU_NAME, which is the host's own."""
    two = gang(2)
    env = gang_environment(two, two.members[2], SHAPE, megascale_port=1, user_env={})
    assert env["EXECUTOR_CALL_INDEX"] == "0"
    assert env["EXECUTOR_CALL_SLICE"] == "1"
    assert env["TPU_SLICE_NAME"] == "slice-1"
    assert env["TPU_HOST_ID"] == "0"
    assert env["TPU_NUM_DEVICES"] == "4"
    assert env["TPU_VERSION"] == "v4"
    assert env["TPU_POD_COUNT"] == "2"
    assert "TPU_NAME" not in env


@pytest.mark.parametrize(("user_env", "port"), [({}, "99"), ({"COORD_PORT": "8081"}, "8081")])
def test_the_user_may_fix_the_port(user_env: dict[str, str], port: str) -> None:
    """COORD_PORT overrides the port that is new for each attempt."""
    two = gang(2)
    assert gang_environment(two, two.members[0], SHAPE, megascale_port=99, user_env=user_env)["MEGASCALE_PORT"] == port
