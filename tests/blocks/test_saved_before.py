"""What release 0.1.0 saved in Prefect is what this code reads and would save: no new block schema, no lost field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefect_tpu import blocks
from prefect_tpu.blocks import TpuSlicePool

SAVED: dict[str, Any] = json.loads(Path(__file__).with_name("saved_by_0_1_0.json").read_text())
"""Written by the code of 0.1.0; nothing in it may be changed."""


@pytest.mark.parametrize("name", SAVED["pools"])
def test_saved_pools_load_unchanged(name: str) -> None:
    """Every field as it was saved, and the fleet as the block that it was. Any warning is an error here."""
    saved = SAVED["pools"][name]
    pool = TpuSlicePool.model_validate(saved)
    assert pool.fleet.get_block_type_slug() == saved["fleet"]["block_type_slug"]
    assert pool.model_dump(mode="json", by_alias=True, context={"include_secrets": True}) == saved
    assert pool.runner().resolve().fleet is not None


@pytest.mark.parametrize("name", SAVED["checksums"])
def test_forms_are_those_that_were_registered(name: str) -> None:
    """Titles, descriptions, defaults and the order of fields; another checksum is a new block schema in Prefect."""
    assert getattr(blocks, name)._calculate_schema_checksum() == SAVED["checksums"][name]
