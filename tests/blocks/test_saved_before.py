"""What 0.1.0 saved in Prefect is what this code reads and would save: no lost field, a new schema only for new ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from prefect_tpu import ConfigurationError, blocks
from prefect_tpu.blocks import TpuSlicePool

SAVED: dict[str, Any] = json.loads(Path(__file__).with_name("saved_by_0_1_0.json").read_text())
"""Written by the code of 0.1.0; nothing in it may be changed."""
ADDED: dict[str, dict[str, Any]] = {
    "TpuSlicePool": {"size_wait_seconds": None, "by_name": None, "jax_distributed": None, "secret_env": {}}
}
"""Fields that 0.1.0 did not have, with what an old block has in them."""
NEW_OF_QUEUED = {"host_package": None, "host_lock": None, "token_secret": None, "unprotected_ray": False}
"""The same of its fleet; its form is another one, as addresses are internal unless asked for."""


@pytest.mark.parametrize("name", SAVED["pools"])
def test_saved_pools_load_unchanged(name: str) -> None:
    """Every field as it was saved, and the fleet as the block that it was. Any warning is an error here."""
    saved = SAVED["pools"][name]
    pool = TpuSlicePool.model_validate(saved)
    assert pool.fleet.get_block_type_slug() == saved["fleet"]["block_type_slug"]
    dumped = pool.model_dump(mode="json", by_alias=True, context={"include_secrets": True})
    assert {one: dumped["fleet"].pop(one) for one in NEW_OF_QUEUED if one in dumped["fleet"]} in ({}, NEW_OF_QUEUED)
    assert dumped == saved | ADDED["TpuSlicePool"]
    assert pool.runner().resolve().fleet is not None


@pytest.mark.parametrize("name", [name for name, saved in SAVED["pools"].items() if "project" in saved["fleet"]])
def test_queued_ones_that_relied_on_unsafe_defaults_are_refused_when_they_are_used(name: str) -> None:
    """They load, and keep what they said; a run says what has to be added, before anything is asked for."""
    fleet: Any = TpuSlicePool.model_validate(SAVED["pools"][name]).runner().resolve().fleet
    assert fleet.external_ips is SAVED["pools"][name]["fleet"]["external_ips"]
    with pytest.raises(ConfigurationError, match=r"give host_package|token_secret='projects/"):
        fleet.connect()


@pytest.mark.parametrize("name", [name for name in SAVED["checksums"] if name != "QueuedResourceFleetBlock"])
def test_forms_are_those_that_were_registered(name: str) -> None:
    """Titles, descriptions, defaults and the order of fields; another checksum is a new block schema in Prefect.

    Fields that came later are in between, and nothing else.
    """
    block = getattr(blocks, name)
    schema = copy.deepcopy(block.model_json_schema())
    for field in ADDED.get(name, {}):
        later = schema["properties"].pop(field)["position"]
        for one in schema["properties"].values():
            one["position"] -= one.get("position", 0) > later
    for fleet in schema.get("block_schema_references", {}).get("fleet", ()):
        if fleet["block_type_slug"] == "queued-resource-tpu-fleet":  # its form changed
            fleet["block_schema_checksum"] = SAVED["checksums"]["QueuedResourceFleetBlock"]
    assert block._calculate_schema_checksum(schema) == SAVED["checksums"][name]
