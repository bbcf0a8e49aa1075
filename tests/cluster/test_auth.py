"""Ray's token in this process is that of the cluster in use, whoever has used Ray before."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._raylet import AuthenticationMode, get_authentication_mode

from prefect_tpu import ConfigurationError, LocalFleet, RayFleet
from prefect_tpu.cluster import addresses, auth, session
from prefect_tpu.fleets import look, tokens
from prefect_tpu.gang.agents import start_agent
from prefect_tpu.linux import ports

WRONG = "d" * 64


@pytest.fixture(autouse=True)
def plain(fleet: LocalFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No connection, and no token but the fleet's; the environment is as before in the end."""
    session.disconnect()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (auth.MODE, auth.TOKEN, auth.TOKEN_PATH):
        monkeypatch.setenv(name, "")  # what Ray sets is taken back, too
        monkeypatch.delenv(name)
    yield
    ray.shutdown()
    monkeypatch.undo()
    session.disconnect()


def works(fleet: LocalFleet) -> bool:
    """Whether something that runs there can answer this process."""
    fleet.connect()
    node = fleet.status()["slices"][0]["hosts"][0]["node_id"]
    agent = start_agent(node, "of-the-test", {})
    try:
        return len(ray.get(agent.free_ports.remote(2), timeout=60)) == 2
    finally:
        ray.kill(agent)


def test_after_and_before_a_ray_of_the_users_own(fleet: LocalFleet) -> None:
    """`ray.init()` without an address, as RayTaskRunner() does it, leaves RAY_AUTH_MODE=token behind."""
    ray.init(num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    ray.shutdown()
    assert os.environ[auth.MODE] == "token"
    assert works(fleet)
    ray.shutdown()  # under our hands
    ray.init(num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    assert ray.get(ray.remote(lambda: 5).remote(), timeout=60) == 5
    ray.shutdown()
    assert works(fleet)


def test_two_fleets_by_turns(fleet: LocalFleet) -> None:
    """Each with its own token; afterwards Ray is as it was, and the environment has never changed."""
    before = dict(os.environ)
    with LocalFleet(slices=1, topology="2x2x1", cpus_per_host=4) as other:
        assert works(other)
        assert works(fleet)
        RayFleet(other.address).connect()
        assert session.address() == other.address
    assert works(fleet)
    assert get_authentication_mode() == AuthenticationMode.TOKEN
    session.disconnect()
    assert get_authentication_mode() == AuthenticationMode.DISABLED
    assert dict(os.environ) == before


def test_a_connection_that_ended_late_takes_nothing_from_the_next(fleet: LocalFleet) -> None:
    """Somebody may keep Ray's node, in a traceback for one: it goes while the next connection is in use."""
    with LocalFleet(slices=1, topology="2x2x1", cpus_per_host=4) as other:
        other.connect()
        kept = [ray._private.worker.global_worker.node]
        fleet.connect()
        kept.clear()
        gc.collect()
        assert get_authentication_mode() == AuthenticationMode.TOKEN
        assert works(fleet)


def test_another_fleet_is_looked_at_and_not_shown_the_token_in_use(fleet: LocalFleet) -> None:
    """A pool's status, while a gang of this process is elsewhere: the connection stays."""
    with LocalFleet(slices=1, topology="2x2x1", cpus_per_host=4) as other:
        fleet.connect()
        generation = session.generation()
        assert [one.name for one in look.summary_of(other.address).slices] == ["slice-0"]
        assert session.address() == fleet.address
        assert session.generation() == generation
        with (
            pytest.raises(auth.OtherTokenError, match="whose token is not shown to it"),
            auth.at(other.address, tokens.token_of),
        ):
            pass
        assert works(fleet)


def test_the_error_names_authentication(fleet: LocalFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which token was used, never its value, and where to set it; nothing is reserved, nothing is tried again."""
    address = fleet.address
    for variables, words in (
        ({}, "asks for a token, and there is none here"),
        ({auth.MODE: "disabled"}, "asks for a token, and RAY_AUTH_MODE is 'disabled' here"),
        ({auth.TOKEN: WRONG}, "does not take the one from the variable RAY_AUTH_TOKEN"),
        ({auth.MODE: "token", auth.TOKEN: WRONG}, "does not take the one from the variable RAY_AUTH_TOKEN"),
    ):
        with monkeypatch.context() as these:
            for name, value in variables.items():
                these.setenv(name, value)
            with pytest.raises(ConfigurationError, match=words) as failed:
                session.connect(address)
            assert "Set RAY_AUTH_MODE=token" in str(failed.value)
            assert WRONG not in str(failed.value)
            assert (get_authentication_mode() == AuthenticationMode.TOKEN) == (variables.get(auth.MODE) == "token")


def test_a_token_is_not_sent_to_another_machine_unasked(fleet: LocalFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray itself: an explicit address of somewhere else needs RAY_AUTH_MODE=token."""
    monkeypatch.setenv(auth.TOKEN, WRONG)
    assert auth.access_to(fleet.address).source == "the variable RAY_AUTH_TOKEN"
    here = fleet.address.replace("127.0.0.1", "[::ffff:127.0.0.1]")
    assert auth.access_to(here, found=True).asked
    monkeypatch.setattr(auth, "_is_of_this_machine", lambda address: False)  # there is one machine here
    with pytest.raises(ConfigurationError, match="sends none to another machine unless told to"):
        auth.access_to(fleet.address)
    monkeypatch.setenv(auth.MODE, "token")
    assert auth.access_to(fleet.address).asked


def test_nobody_is_no_cluster() -> None:
    """Whether it asks for a token cannot be told; an address without a port is refused where it is resolved."""
    (port,) = ports.free_ports(1)
    assert auth.asks_for_token(f"127.0.0.1:{port}") is None
    assert not ports.only_on_loopback(port)


def test_loopback_stays_where_nothing_else_listens(fleet: LocalFleet) -> None:
    """Ray would look for the fleet at this machine's outer address."""
    assert ports.only_on_loopback(int(fleet.address.rpartition(":")[2]))
    assert addresses.resolve(fleet.address) == fleet.address
    assert addresses.resolve(fleet.address.replace("127.0.0.1", "localhost")).endswith(fleet.address[9:])


def test_an_access_shows_no_token(fleet: LocalFleet) -> None:
    """Neither it nor what connects with it."""
    token = fleet.access()[auth.TOKEN]
    access = auth.access_to(fleet.address, tokens.token_of)
    assert access.environment() == {auth.MODE: "token", auth.TOKEN: token}
    assert token not in repr(access)
    assert auth.Access(False).environment() == {auth.MODE: "disabled"}
    assert token not in auth.describe()
