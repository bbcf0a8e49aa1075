"""What docs/queued-resources.md says can be pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "queued-resources.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_its_code_is_valid(number: int) -> None:
    """Every value passes the checks; nothing is asked of any network."""
    exec(compile(BLOCKS[number], PAGE.name, "exec"), {"__name__": "docs"})


def test_it_names_every_field_that_matters() -> None:
    """With its default where it has one."""
    from prefect_tpu import QueuedResourceFleet

    fleet = QueuedResourceFleet("my-project", ("us-east5-b",))
    text = PAGE.read_text()
    for name in ("idle_release_seconds", "close_timeout_seconds", "join_timeout_seconds", "zone_pause_seconds"):
        assert re.search(rf"`{name}` \({getattr(fleet, name):g}[,)]", text), name
