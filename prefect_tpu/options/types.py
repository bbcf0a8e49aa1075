"""Types of options, each with the words that say what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from prefect_tpu.cluster import runtime_env
from prefect_tpu.options.variables import are_texts, check_secrets, check_variables


@dataclass(frozen=True, slots=True)
class Takes:
    """What callers may pass where it is wider than what is kept, as it is written in an annotation."""

    text: str


def must(allowed: str) -> WrapValidator:
    """In place of pydantic's own words: the same for an argument, a setting and a field of a block."""

    def check(given: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(given)
        except ValidationError as error:
            if any(one["type"] == "value_error" for one in error.errors()):
                raise  # in words of ours already
            raise ValueError(f"must be {allowed}") from None

    return WrapValidator(check)


def _no_truth_value(given: Any) -> Any:
    """To Python True is the number 1."""
    return str(given) if isinstance(given, bool) else given


def _listed(given: Any) -> Any:
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else given


def _sizes(given: Any) -> Any:
    return [_no_truth_value(one) for one in given] if isinstance(given, list) else _no_truth_value(given)


def _mapped(given: Any) -> Any:
    return dict(given) if isinstance(given, Mapping) else given


def _path(given: Any) -> Any:
    return str(given) if isinstance(given, Path) else given


def _has_a_scheme(given: str) -> str:
    """A misspelt URL would fail on the hosts, after the launch; or be a directory of this machine."""
    begins = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?", given)
    if begins is None:
        return given
    from fsspec import available_protocols

    scheme, known = begins[1].lower(), available_protocols()
    if begins[2] and scheme not in known:
        raise ValueError(
            f"{scheme!r} is no scheme of a URL that fsspec knows, such as gs, s3, az, hf: correct it, or mount the "
            "directory on every host and give its path"
        )
    if not begins[2] and scheme in known:
        raise ValueError(f"a URL begins with '{scheme}://'; a directory of that name is './{given}'")
    return given


def _are_modules(given: list[str]) -> list[str]:
    wrong = [name for name in given if name == "__main__" or not all(part.isidentifier() for part in name.split("."))]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no name of a module, such as 'jax' or 'orbax.checkpoint'")
    return given


Flag = Annotated[bool, must("True or False")]
Count = Annotated[int, Field(ge=0), BeforeValidator(_no_truth_value), must("a whole number of at least 0")]
CountFrom1 = Annotated[int, Field(ge=1), BeforeValidator(_no_truth_value), must("a whole number of at least 1")]
Seconds = Annotated[float, Field(ge=0), BeforeValidator(_no_truth_value), must("a number of seconds, 0 or more")]
SecondsAbove0 = Annotated[float, Field(gt=0), BeforeValidator(_no_truth_value), must("a number of seconds above 0")]
SecondsAbove1 = Annotated[float, Field(gt=1), BeforeValidator(_no_truth_value), must("a number of seconds above 1")]
WholeSecondsAbove0 = Annotated[
    int, Field(gt=0), BeforeValidator(_no_truth_value), must("a whole number of seconds above 0")
]
PerSecond = Annotated[float, Field(gt=0), BeforeValidator(_no_truth_value), must("a number above 0")]
Bytes = Annotated[int, Field(ge=0), BeforeValidator(_no_truth_value), must("a whole number of bytes, 0 or more")]
BytesAbove0 = Annotated[int, Field(gt=0), BeforeValidator(_no_truth_value), must("a whole number of bytes above 0")]

AcceleratorType = Annotated[str, must('a string such as "v4"')]
Topology = Annotated[str, must('a string such as "2x2x2"')]
Directory = Annotated[
    str,
    Field(min_length=1),
    BeforeValidator(_path),
    AfterValidator(_has_a_scheme),
    must("a directory or an fsspec URL, at least one character"),
    Takes("str | Path"),
]
Size = Annotated[int, Field(ge=1)]
Sizes = Annotated[
    Size | Annotated[list[Size], Field(min_length=1)],
    BeforeValidator(_sizes),
    BeforeValidator(_listed),
    must("a whole number of at least 1, or several of them such as [2, 4, 8]"),
    Takes("int | Sequence[int]"),
]
"""A number of slices, or the numbers that are acceptable."""
JaxDistributed = Annotated[bool | Literal["auto"], must('"auto", True or False')]
Modules = Annotated[
    list[str],
    BeforeValidator(_listed),
    AfterValidator(_are_modules),
    must('a sequence of names of modules, such as ("jax", "numpy")'),
    Takes("Sequence[str]"),
]
Variables = Annotated[
    dict[str, str],
    BeforeValidator(are_texts),
    AfterValidator(check_variables),
    must("a mapping of strings to strings"),
    Takes("Mapping[str, str]"),
]
SecretVariables = Annotated[
    dict[str, SecretStr],
    BeforeValidator(are_texts),
    AfterValidator(check_secrets),
    must("a mapping of strings to strings"),
    Takes("Mapping[str, str | SecretStr]"),
]
RuntimeEnv = Annotated[
    dict[str, Any],
    BeforeValidator(_mapped),
    AfterValidator(runtime_env.check),
    must('a mapping such as {"pip": ["einops==0.8.1"]}'),
    Takes("Mapping[str, Any]"),
]
