"""How an option is declared, beside its type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo


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
