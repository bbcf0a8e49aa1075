"""What errors, logs and representations show of values that may be secret."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_tpu.core.secrets import has_credentials, shown, without_credentials


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://u:hush@pypi.example/simple", "https://...@pypi.example/simple"),
        ("--index-url https://u:hush@pypi.example/simple x", "--index-url https://...@pypi.example/simple x"),
        ("git+https://hush@github.com/a/b@v1.0", "git+https://...@github.com/a/b@v1.0"),
        ("https://u:hu/sh@h/x", "https://...@h/x"),
        ("https://u:hu@sh@h/x", "https://...@h/x"),
        ("postgres+asyncpg://u:hush@db:5432/x?sslmode=no", "postgres+asyncpg://...@db:5432/x?..."),
        ("https://blob.example/code.zip?sv=1&sig=hush#egg=x", "https://blob.example/code.zip?...#egg=x"),
        ("einops @ git+ssh://git@github.com/a/b", "einops @ git+ssh://git@github.com/a/b"),
        ("http://proxy:3128/a@b", "http://proxy:3128/a@b"),
        ("gs://BUCKET/code.zip", "gs://BUCKET/code.zip"),
        ("a@b.example: x?y", "a@b.example: x?y"),
    ],
)
def test_urls_are_shown_without_who_logs_in(text: str, says: str) -> None:
    """Neither user nor password, nor what is asked, as signatures stand there; the rest stays readable."""
    assert without_credentials(text) == says


@pytest.mark.parametrize(
    ("value", "name", "says"),
    [
        ({"HF_TOKEN": "hush", "N": 3}, "env", "{'HF_TOKEN': ..., 'N': ...}"),
        ({"HF_TOKEN=hush": "1"}, "env", "{'HF_TOKEN=...': ...}"),
        (["HF_TOKEN=hush"], "env", "..."),
        ("hush", "secret_env", "..."),
        ({"env_vars": {"A": "hush"}, "pip": ["--index-url https://u:hush@h"]}, "runtime_env",
         "{'env_vars': {'A': ...}, 'pip': ['--index-url https://...@h']}"),
        ({"secret_env": {"A": "hush"}}, "pool", "{'secret_env': {'A': ...}}"),
        (("a", 2), "", "('a', 2)"),
        (("a",), "", "('a',)"),
        ([2, 4], "num_slices", "[2, 4]"),
        (True, "resumable", "True"),
    ],
)  # fmt: skip
def test_variables_are_shown_by_name(value: Any, name: str, says: str) -> None:
    """And everything else as it is."""
    assert shown(value, name) == says


def test_what_lets_in() -> None:
    """A user in a URL, a signed URL, a private key; and no more."""
    for one in ("x://u:p@h", "https://t@h", "https://h/x?X-Amz-Signature=1", "-----BEGIN RSA PRIVATE KEY-----\nx"):
        assert has_credentials(one), one
    for one in ("", "http://proxy:3128", "ssh://git@github.com/x", "a@b", "https://h/x?page=2", "/a?key=1"):
        assert not has_credentials(one), one
