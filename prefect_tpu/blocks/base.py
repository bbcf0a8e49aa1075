"""What all blocks of prefect_tpu have."""

from __future__ import annotations

from typing import Any, ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict, SecretStr, model_validator

LOGO = "https://cdn.sanity.io/images/3ugk85nk/production/10424e311932e31c477ac2b9ef3d53cefbaad708-250x250.png"
"""Google Cloud's, where Prefect's own collection for it has it; Prefect's client takes no picture in line."""
DOCUMENTATION = "https://cloud.google.com/tpu/docs/multislice-introduction"


def _with_secret_mappings(schema: dict[str, Any], model: type[Block]) -> None:
    """Prefect's own addition to a schema, and one more: it hides what is in a mapping only if "FIELD.*" is secret."""
    add: Any = Block.model_config["json_schema_extra"]
    add(schema, model)
    mappings = {name for name, field in model.model_fields.items() if field.annotation == dict[str, SecretStr]}
    schema["secret_fields"] = [f"{name}.*" if name in mappings else name for name in schema["secret_fields"]]


class TpuBlock(Block):
    """A form with a logo, which knows its fields."""

    model_config = ConfigDict(json_schema_extra=_with_secret_mappings)

    _logo_url: ClassVar[Any] = LOGO
    _documentation_url: ClassVar[Any] = DOCUMENTATION

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_fields(cls, given: Any) -> Any:
        """Prefect's blocks keep whatever they are given, so that a misspelt field would be a silent one."""
        if isinstance(given, dict):
            known = {*cls.model_fields, "block_type_slug", "is_anonymous"}
            unknown = sorted(name for name in given if name not in known and not name.startswith("_"))
            if unknown:
                raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(cls.model_fields)}")
        return given
