"""How an option is declared, beside its type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from prefect_tpu.core.secrets import Shown
from prefect_tpu.options.variables import in_both


class Discreet(BaseModel):
    """Neither its representation nor its errors show what may be secret."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [(name, Shown(value, name or "")) for name, value in super().__repr_args__()]


class Options(Discreet):
    """What gangs are given, in one place or all together."""

    @field_validator("secret_env", check_fields=False)
    @classmethod
    def _not_in_env_too(cls, given: dict[str, SecretStr], info: ValidationInfo) -> dict[str, SecretStr]:
        wrong = in_both(info.data.get("env") or {}, given or {})
        if wrong:
            raise ValueError(wrong)
        return given


@dataclass(frozen=True, slots=True)
class Form:
    """How the block's form has the option.

    Attributes:
        text: beside the field.
        shown: the field begins with the default; else it begins empty, which stands for "not said here".
    """

    text: str
    shown: bool


def option(
    default: Any, *, description: str, title: str | None = None, form: str | None = None, shown: bool = False
) -> Any:
    """An option's default and words.

    Args:
        default: where neither the runner nor a setting nor the pool says something.
        description: whole sentences, for `prefect-tpu settings`.
        title: of the form's field, if it is not the option's name.
        form: text beside the form's field, if it is not the description; {} is the default.
        shown: the form begins with the default, not empty.
    """
    if default is None or shown:
        text = form or description
    elif form is None:
        text = f"{description.removesuffix('.')}; empty: {default}."
    else:
        text = form.replace("{}", f"{default:g}" if isinstance(default, float) else str(default))
    extra: Any = {"form": Form(text, shown)}
    return Field(default=default, title=title, description=description, json_schema_extra=extra)


def form_of(field: FieldInfo) -> Form:
    """What `option` was told."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    found: Any = extra["form"]
    assert isinstance(found, Form)
    return found
