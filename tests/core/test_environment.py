"""The variables that a host process gets."""

from __future__ import annotations

import pytest

from prefect_tpu.core.environment import READ_AT_IMPORT, attempt_environment, gang_environment, read_at_import
from prefect_tpu.core.gang import Gang, Host, Slice
from prefect_tpu.core.topology import SliceShape
from prefect_tpu.options.variables import READ_AT_START

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


HOSTS = "localhost,127.0.0.1,::1,10.0.0.0,10.0.0.1,10.0.1.0,10.0.1.1"


PROXY = {"https_proxy": "http://proxy:3128"}


def direct(found: dict[str, str], user_env: dict[str, str]) -> dict[str, str]:
    """What a host process of two slices sets of these."""
    two = gang(2)
    of_gang = gang_environment(two, two.members[0], SHAPE, megascale_port=1, user_env=user_env)
    env = attempt_environment(found, of_gang, user_env, user_env)
    return {name: value for name, value in env.items() if "proxy" in name.lower() and name != "https_proxy"}


@pytest.mark.parametrize(
    ("found", "user_env", "hosts"),
    [
        ({}, PROXY, HOSTS),
        (PROXY | {"no_proxy": "a.example,127.0.0.1"}, {}, f"a.example,127.0.0.1,{HOSTS.replace('127.0.0.1,', '')}"),
        (PROXY | {"no_proxy": "a.example"}, {"no_proxy": "b.example"}, f"b.example,{HOSTS}"),
        (PROXY | {"no_proxy": "a.example", "NO_PROXY": " c,"}, {"no_proxy": "b"}, f"b,c,{HOSTS}"),
        (PROXY | {"no_proxy": "a.example"}, {"no_proxy": ""}, HOSTS),
    ],
)
def test_hosts_of_the_gang_are_reached_without_a_proxy(
    found: dict[str, str], user_env: dict[str, str], hosts: str
) -> None:
    """They are added to what the user, or else the host, says; in both spellings."""
    assert direct(found, user_env) == {"no_proxy": hosts, "NO_PROXY": hosts}


def test_where_there_is_no_proxy_nothing_is_said_of_it() -> None:
    """The user's own words stay."""
    assert direct({}, {}) == {}
    assert direct({"https_proxy": ""}, {"no_proxy": "a"}) == {"no_proxy": "a"}


def test_who_is_reached_by_grpc_without_a_proxy() -> None:
    """Where somebody names them, gRPC looks at no other variable; and it does not know that * is everybody."""
    named = direct(PROXY, {"no_grpc_proxy": "a.example"})
    assert named == {"no_proxy": HOSTS, "NO_PROXY": HOSTS, "no_grpc_proxy": f"a.example,{HOSTS}"}
    assert direct(PROXY | {"NO_PROXY": "*"}, {}) == {"no_proxy": "*", "NO_PROXY": "*", "no_grpc_proxy": HOSTS}


def test_which_variables_must_be_there_before_modules_are_imported() -> None:
    """Those that are known to be read then, those of a module of preload, and those that were seen to be read."""
    given = {"SEED": "1", "JAX_ENABLE_X64": "1", "OMP_NUM_THREADS": "1", "TORCH_HOME": "/x", "HF_HOME": "/y"}
    assert read_at_import(("jax",), given, ()).keys() == {"JAX_ENABLE_X64", "OMP_NUM_THREADS"}
    assert read_at_import(("torch.nn",), given, ("HF_HOME",)).keys() == given.keys() - {"SEED"}
    assert read_at_import((), given, ("*",)) == given
    assert set(READ_AT_START) <= set(READ_AT_IMPORT)
