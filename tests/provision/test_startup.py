"""The startup script, run for real: as whom, what it installs, and how a TPU VM and nobody else gets Ray's token."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_tpu import ConfigurationError, QueuedResourceFleet
from prefect_tpu.cluster.tpu import resolve_shape
from prefect_tpu.fleets import host_package, queued_keepers
from prefect_tpu.linux.ports import free_ports
from prefect_tpu.provision import startup
from tests.processes import descendants
from tests.provision.conftest import ACCOUNT, SECRET
from tests.provision.tpu_vm import GoogleCloud, TpuVm, end, google_cloud
from tests.waiting import eventually

TOKEN = "c0ffee" * 11
WHEEL = "gs://my-bucket/wheels/prefect_tpu-0.1.0-py3-none-any.whl"
OBJECT = "/storage/v1/b/my-bucket/o/wheels%2Fprefect_tpu-0.1.0-py3-none-any.whl?alt=media"
RAY = '#!/bin/bash\necho "ray $* as $RAY_AUTH_MODE by $RAY_AUTH_TOKEN_PATH" >>"$SAID"\nsleep 600\n'


@pytest.fixture
def cloud() -> Iterator[GoogleCloud]:
    """With the secret in it."""
    with google_cloud() as running:
        running.secrets[SECRET] = TOKEN + "\n"
        yield running


@pytest.fixture
def boot(tmp_path: Path, cloud: GoogleCloud) -> Iterator[Callable[..., TpuVm]]:
    """Starts a TPU VM of this fleet."""
    running: list[TpuVm] = []

    def start(fleet: QueuedResourceFleet, address: str = "10.0.0.2:6379", ray: str = RAY, **variables: str) -> TpuVm:
        request = fleet.request(resolve_shape("v4", "2x2x1"), address, "run")
        folder = tmp_path / f"vm-{len(running)}"
        running.append(TpuVm(request.script("training-1"), folder, cloud, ray, **variables))
        return running[-1]

    yield start
    for one in running:
        one.switch_off()


def fleet(**changed: Any) -> QueuedResourceFleet:
    given: dict[str, Any] = {"token_secret": SECRET, "service_account": ACCOUNT, "host_package": WHEEL}
    return QueuedResourceFleet("my-project", ("us-east5-b",), "10.0.0.2:6379", **(given | changed))


def joined(vm: TpuVm) -> str:
    """How Ray was started."""
    eventually(lambda: any(word.startswith("ray ") for word in vm.words()), f"Ray starts; {vm.log.read_text()}")
    return next(word for word in vm.words() if word.startswith("ray "))


def test_a_boot(boot: Callable[..., TpuVm], cloud: GoogleCloud) -> None:
    """A user of its own; a pinned uv; the wheel from the bucket; the token in a file of that user, and nowhere else."""
    cloud.objects[OBJECT] = b"a wheel"
    cloud.failures = 2  # the network of a VM that boots comes late
    vm = boot(fleet(host_packages=["einops==0.8.1"]), NO_SUCH_USER="1")
    file = vm.home / "ray-token"
    assert joined(vm) == f"ray start --address=10.0.0.2:6379 --block --disable-usage-stats as token by {file}"
    words = vm.words()
    assert words[0] == f"useradd --system --create-home --home-dir {vm.home} --shell /usr/sbin/nologin prefect-tpu"
    assert words[1] == "runuser -u prefect-tpu"
    assert words[2].startswith("pip install --quiet --require-hashes --no-deps")
    assert re.search(r"^uv==[0-9.]+ ", (vm.home / "uv.txt").read_text())
    installed = next(word for word in words if word.startswith("uv pip install"))
    assert re.search(
        r" ray==2\S+ jax\[tpu\]==\S+ \S+/wheels/prefect_tpu-0\.1\.0-py3-none-any\.whl einops==0\.8\.1$", installed
    )
    assert (vm.home / "wheels" / "prefect_tpu-0.1.0-py3-none-any.whl").read_bytes() == b"a wheel"
    assert file.read_text() == TOKEN
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shown = [vm.log.read_text(), vm.said.read_text(), (vm.programs / "join.sh").read_text()]
    for pid in [vm.process.pid, *descendants(vm.process.pid)]:
        shown += [Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
    assert len(shown) >= 7
    assert [text for text in shown if TOKEN in text or "ya29" in text] == []


def test_a_secret_that_may_not_be_read(boot: Callable[..., TpuVm], cloud: GoogleCloud) -> None:
    """Ray is not started without it; the log names the role; once it is granted, the VM joins."""
    cloud.denied, cloud.objects[OBJECT] = False, b"a wheel"
    cloud.secrets.clear()
    vm = boot(fleet())
    eventually(lambda: "secretmanager.secretAccessor" in vm.log.read_text(), "the log says it")
    assert not any(word.startswith("ray ") for word in vm.words())
    cloud.secrets[SECRET] = TOKEN
    assert "as token" in joined(vm)


def test_a_wheel_that_was_changed(boot: Callable[..., TpuVm], cloud: GoogleCloud) -> None:
    """With the checksum of another one nothing is installed."""
    cloud.objects[OBJECT] = b"another wheel"
    vm = boot(fleet(host_package=f"{WHEEL}#sha256={hashlib.sha256(b'a wheel').hexdigest()}"))
    assert vm.process.wait(20) == 1
    assert "its SHA-256 is" in vm.log.read_text()
    assert not any(word.startswith("uv pip") for word in vm.words())


def test_a_lock_file(boot: Callable[..., TpuVm], cloud: GoogleCloud) -> None:
    """All that is installed has a hash; the wheel that it names comes from the bucket."""
    cloud.objects |= {OBJECT: b"a wheel", "/storage/v1/b/my-bucket/o/lock.txt?alt=media": b"ray==2.60.0 --hash=..."}
    vm = boot(fleet(host_lock="gs://my-bucket/lock.txt"))
    joined(vm)
    installed = next(word for word in vm.words() if word.startswith("uv pip install"))
    assert installed.endswith(f"--require-hashes --find-links {vm.home}/wheels -r {vm.home}/lock.txt")
    assert "jax" not in installed


def test_an_image_that_brings_everything(boot: Callable[..., TpuVm], tmp_path: Path) -> None:
    """Nothing is installed; in a Ray that is said to be open there is no token."""
    (tmp_path / "vm-0" / "image" / "bin").mkdir(parents=True)
    ray = tmp_path / "vm-0" / "image" / "bin" / "ray"
    ray.write_text(RAY)
    ray.chmod(0o755)
    vm = boot(fleet(token_secret=None, unprotected_ray=True))
    assert "as disabled by " in joined(vm)
    assert vm.words()[:1] == ["runuser -u prefect-tpu"]
    assert not any(word.startswith(("pip", "uv")) for word in vm.words())


@pytest.mark.slow
def test_a_vm_joins_a_head_that_asks_for_a_token(
    boot: Callable[..., TpuVm], cloud: GoogleCloud, tmp_path: Path
) -> None:
    """Ray's own head and Ray's own command on the VM; with another token in the secret it does not get in."""
    ray = Path(sysconfig.get_path("scripts")) / "ray"
    token, port = tmp_path / "token", free_ports(1)[0]
    token.write_text(TOKEN)
    access = dict(os.environ) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    access |= {"RAY_TMPDIR": "/tmp", "RAY_USAGE_STATS_ENABLED": "0"}
    directory = tempfile.mkdtemp(prefix="ptpu-", dir="/tmp")  # short, as Ray's sockets are in it
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--num-cpus=0", f"--port={port}", "--node-ip-address=127.0.0.1",
         "--include-dashboard=false", f"--temp-dir={directory}"],
        env=access, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    image = tmp_path / "vm-0" / "image" / "bin"
    image.mkdir(parents=True)
    (image / "ray").symlink_to(ray)
    count = [
        sys.executable,
        "-c",
        "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(len(ray.nodes()))",
    ]

    def nodes() -> str:
        done = subprocess.run([*count, f"127.0.0.1:{port}"], env=access, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        eventually(lambda: nodes() == "1", "the head is up", 60)
        cloud.secrets[SECRET] = "d1ce" * 16
        vm = boot(fleet(), f"127.0.0.1:{port}")
        eventually(lambda: "oken" in vm.log.read_text(), "it is refused", 60)
        assert nodes() == "1"
        cloud.secrets[SECRET] = TOKEN  # the right one: the next try of the same VM gets in
        eventually(lambda: nodes() == "2", f"the VM has joined; {vm.log.read_text()}", 90)
    finally:
        end(head)
        shutil.rmtree(directory, ignore_errors=True)


# -- what is refused before anything is asked for


def test_nothing_is_installed_by_its_name_alone() -> None:
    """The error says what may be given; a made fleet loads, and is refused when it is used."""
    made = fleet(host_package=None)
    for use in (made.connect, lambda: made.request(resolve_shape("v4", "2x2x1"), "10.0.0.2:6379", "run")):
        with pytest.raises(ConfigurationError, match=r"install nothing by its name alone.*gs://BUCKET/FILE\.whl"):
            use()
    script = "#!/bin/bash\nray start --address={{ray_address}} # {{token_secret}}"
    fleet(host_package=None, startup_script=script).check_safe()


def test_nothing_joins_an_open_ray_unasked() -> None:
    """Neither by the package's script nor by one of the user's that says nothing of a token."""
    script = "#!/bin/bash\nray start --address={{ray_address}}"
    for changed in ({}, {"startup_script": script}):
        with pytest.raises(ConfigurationError, match=r"token_secret='projects/.*unprotected_ray=True"):
            fleet(token_secret=None, **changed).check_safe()
        fleet(token_secret=None, unprotected_ray=True, **changed).check_safe()
    fleet(token_secret=None, startup_script=script + "\nexport RAY_AUTH_MODE=token").check_safe()
    with pytest.raises(ConfigurationError, match=r"startup_script, which has no \{\{token_secret\}\}"):
        fleet(startup_script=script).check_safe()


def test_driver_and_hosts_come_in_the_same_way() -> None:
    """Both with a token, or both without."""
    with pytest.raises(ConfigurationError, match=r"without any\. Start the head with RAY_AUTH_MODE=token"):
        queued_keepers.check_token(fleet(), "10.0.0.2:6379", asks=False)
    with pytest.raises(ConfigurationError, match=r"asks for a token.*token_secret="):
        queued_keepers.check_token(fleet(token_secret=None, unprotected_ray=True), "10.0.0.2:6379", asks=True)
    queued_keepers.check_token(fleet(), "10.0.0.2:6379", asks=True)


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("found", "package"),
    [
        (None, None),
        ({"url": "file:///home/me/prefect-tpu", "dir_info": {"editable": True}}, None),
        (
            {"url": "https://github.com/me/prefect-tpu.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
            f"prefect-tpu @ git+https://github.com/me/prefect-tpu.git@{COMMIT}",
        ),
        ({"url": "ssh://git@github.com/me/prefect-tpu.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}, None),
        ({"url": "https://u:p@github.com/me/x.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}, None),
        (
            {
                "url": "https://x.org/prefect_tpu-0.1.0-py3-none-any.whl",
                "archive_info": {"hashes": {"sha256": "ab" * 32}},
            },
            f"prefect-tpu @ https://x.org/prefect_tpu-0.1.0-py3-none-any.whl#sha256={'ab' * 32}",
        ),
        ({"url": "https://x.org/prefect_tpu-0.1.0-py3-none-any.whl", "archive_info": {}}, None),
    ],
)
def test_where_the_drivers_own_came_from(found: dict[str, Any] | None, package: str | None) -> None:
    """A commit or a wheel with its hash is the very same for others; a folder or a name is not."""
    assert host_package.from_direct_url(found) == package


def test_the_script_begins_as_a_shell_reads_it() -> None:
    """No value can end the text that it stands in."""
    subprocess.run(["bash", "-n"], input=startup.template().replace("{{", "").replace("}}", ""), text=True, check=True)
    with pytest.raises(ConfigurationError, match="must be printable"):
        fleet().request(resolve_shape("v4", "2x2x1"), "10.0.0.2:6379\nEND_OF_JOIN\nid", "run").script("training-1")
