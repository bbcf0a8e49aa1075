"""Writes queued_fields.py from queued_options.py: `python -m prefect_tpu.fleets.queued_generate`; --check compares."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from prefect_tpu.fleets.queued_options import Kept, QueuedOptions
from prefect_tpu.options.generate import Written, markers, quoted, run


def _field(name: str, text: str, field: FieldInfo) -> str:
    """One field of a frozen dataclass."""
    kept = next((one for one in markers(field) if isinstance(one, Kept)), None) or Kept(_plain(field))
    annotation = kept.text + (" | None" if text.endswith("| None") and kept.text != "Any" else "")
    if field.is_required():
        return f"    {name}: {annotation}"
    default = "()" if field.default_factory is not None else quoted(field.default)
    return f"    {name}: {annotation} = {f'field(default={default}, repr=False)' if kept.hidden else default}"


def _plain(field: FieldInfo) -> str:
    """The type without the words that are beside it."""
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    origins = [getattr(one, "__origin__", one) for one in kinds]
    return next(one.__name__ for one in (str, float, bool) if one in origins)


FIELDS = Written(
    model=QueuedOptions,
    target=Path(__file__).with_name("queued_fields.py"),
    head='''\
"""Generated from queued_options.py by queued_generate.py, do not edit. The fields of a fleet of queued resources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_tpu.provision.request import Provisioning
''',
    classes=(
        (
            '''\
@dataclass(frozen=True, slots=True)
class QueuedFields:
    """In the order in which they may be given by position."""
''',
            _field,
        ),
    ),
)


if __name__ == "__main__":
    sys.exit(run([FIELDS], sys.argv[1:]))
