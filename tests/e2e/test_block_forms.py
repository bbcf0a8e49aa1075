"""Pools in Prefect's UI: registered, filled in, refused, looked at, in a real browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_tpu.blocks import LocalFleetBlock, QueuedResourceFleetBlock, RayFleetBlock, TpuSlicePool
from prefect_tpu.blocks.base import TpuBlock
from tests.e2e.prefect_server import Server
from tests.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SETTLE_MS = 1_000
"""Until the page has drawn its form."""


@pytest.fixture(scope="module")
def server(ui_server: Server) -> Server:
    """With the blocks registered, as docs/pools.md says."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "block", "register", "-m", "prefect_tpu"],
        env=os.environ | {"PREFECT_API_URL": ui_server.url},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    for block in ALL_BLOCKS:
        assert str(block._block_type_name) in done.stdout
    return ui_server


ALL_BLOCKS: tuple[type[TpuBlock], ...] = (LocalFleetBlock, RayFleetBlock, QueuedResourceFleetBlock, TpuSlicePool)


def test_no_block_is_forgotten_here() -> None:
    """Each has a form."""
    assert set(ALL_BLOCKS) == set(TpuBlock.__subclasses__())


def text_of(page: Page) -> str:
    return " ".join(page.inner_text("body").split())


def labels(block: type[TpuBlock]) -> list[tuple[str, str]]:
    """What the form calls each field, and what it says of it."""
    return [(field.title or name.replace("_", " ").title(), str(field.description)) for name, field in fields(block)]


def fields(block: type[TpuBlock]) -> list[tuple[str, Any]]:
    return list(block.model_fields.items())


def field(page: Page, title: str) -> Locator:
    return page.locator(".schema-form-property", has=page.get_by_text(title)).last


def open_form(server: Server, page: Page, slug: str) -> None:
    page.goto(f"{server.ui}/blocks/catalog/{slug}/create")
    page.get_by_role("button", name="Create").last.wait_for()
    page.wait_for_timeout(SETTLE_MS)


def python(server: Server, code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Prefect sends events of blocks for as long as the process lives, to this server."""
    env = os.environ | {"PREFECT_API_URL": server.url}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def documents(server: Server) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in server.post("/block_documents/filter", {})}


def test_the_catalog(server: Server, page: Page, pictures: Path) -> None:
    """Every kind of block is in it."""
    page.goto(f"{server.ui}/blocks/catalog")
    for block in ALL_BLOCKS:
        page.get_by_text(str(block._block_type_name), exact=True).first.wait_for()
    page.get_by_text("TPU Slice Pool", exact=True).first.scroll_into_view_if_needed()
    page.screenshot(path=pictures / "blocks.png")


@pytest.mark.parametrize("slug", [str(block._block_type_slug) for block in ALL_BLOCKS])
def test_the_form_explains_every_field(slug: str, server: Server, page: Page, pictures: Path) -> None:
    """Title and description of each, and none that is unknown."""
    (block,) = [one for one in ALL_BLOCKS if one._block_type_slug == slug]
    open_form(server, page, slug)
    text = text_of(page)
    at = 0
    for title, description in labels(block):
        at = text.find(title, at)
        assert at >= 0, f"no {title!r} in its place"
        assert " ".join(description.split()) in text, title
    page.screenshot(path=pictures / f"form-{slug}.png")


@pytest.mark.parametrize(
    ("title", "value", "says"),
    [
        ("Number of slices", "0", "must be greater than or equal to 1"),
        ("Lease timeout (seconds)", "-1", "must be greater than or equal to 0"),
        ("Chips per host", "0", "must be greater than or equal to 1"),
    ],
)
def test_the_form_refuses_bad_numbers(
    title: str, value: str, says: str, server: Server, page: Page, pictures: Path
) -> None:
    """Beside the field; nothing is saved."""
    open_form(server, page, "tpu-slice-pool")
    page.locator("input[type=text]").first.fill("never")
    field(page, title).locator("input[type=number]").first.fill(value)
    page.get_by_role("button", name="Create").last.click()
    said = page.get_by_text(says).first
    said.wait_for()
    said.scroll_into_view_if_needed()
    page.screenshot(path=pictures / f"refused-{re.sub('[^a-z]+', '-', title.lower()).strip('-')}.png")
    assert page.url.endswith("/create")
    assert "never" not in documents(server)


def test_a_pool_of_the_form_is_the_pool_of_its_slug(server: Server, page: Page) -> None:
    """What is filled in is what runs get; what is left empty has its default."""
    open_form(server, page, "tpu-slice-pool")
    page.locator("input[type=text]").first.fill("by-hand")
    field(page, "Topology").locator("textarea").first.fill("2x2x1")
    field(page, "Max Infrastructure Failures").locator("input[type=number]").first.fill("7")
    page.get_by_role("button", name="Create").last.click()
    eventually(lambda: "by-hand" in documents(server), "the pool")
    done = python(
        server,
        "from prefect_tpu.blocks import load_pool; pool = load_pool('tpu-slice-pool/by-hand'); "
        "print(pool.topology, pool.num_slices, pool.max_infrastructure_failures, pool.resumable)",
    )
    assert done.stdout.split() == ["2x2x1", "1", "7", "True"], done.stderr


def test_what_only_the_code_can_check_is_said_when_it_is_loaded(server: Server, page: Page) -> None:
    """The form knows no topologies: the first use names the field, what is allowed, and the pool."""
    open_form(server, page, "tpu-slice-pool")
    page.locator("input[type=text]").first.fill("odd")
    field(page, "Topology").locator("textarea").first.fill("3x5")
    page.get_by_role("button", name="Create").last.click()
    eventually(lambda: "odd" in documents(server), "the pool")
    done = python(server, "from prefect_tpu.cli import main; main(['pool', 'status', 'odd'])")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"(?s)'tpu-slice-pool/odd' is not valid.*topology '3x5'.*2x2x2", done.stderr), done.stderr


def test_a_pool_saved_in_python_is_shown(server: Server, page: Page, pictures: Path) -> None:
    """Its page has its values and how to use it; of a fleet that may be of several kinds Prefect's page shows none."""
    done = python(
        server,
        "from prefect_tpu import RayFleetBlock, TpuSlicePool; from prefect_tpu.blocks import load_pool; "
        "TpuSlicePool(fleet=RayFleetBlock(address='10.1.2.3:6379'), accelerator_type='v6e', topology='4x4', "
        "num_slices=3, preemptible=True, checkpoint_root='gs://bucket/checkpoints', env={'WANDB_MODE': 'offline'}, "
        "lease_timeout_seconds=77.5).save('v6e-spot'); print(load_pool('tpu-slice-pool/v6e-spot').fleet.address)",
    )
    assert done.stdout.split() == ["10.1.2.3:6379"], done.stderr
    page.goto(f"{server.ui}/blocks/block/{documents(server)['v6e-spot']['id']}")
    page.get_by_text("gs://bucket/checkpoints").first.wait_for()
    page.screenshot(path=pictures / "pool.png")
    text = text_of(page)
    for words in ("v6e", "4x4", "Number of slices 3", "Preemptible true", "WANDB_MODE", "77.5"):
        assert words in text, words
    assert "TpuMultisliceRunner(pool=" in text
