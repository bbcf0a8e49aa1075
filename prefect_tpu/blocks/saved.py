"""Pools that are saved in Prefect: loaded by their slug, listed, and what is said when there is none."""

from __future__ import annotations

import logging
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import BlockDocumentFilter, BlockDocumentFilterBlockTypeId
from pydantic import ValidationError

from prefect_tpu.blocks.pool import TpuSlicePool
from prefect_tpu.core.errors import ConfigurationError, ProvisioningError
from prefect_tpu.prefect_api import waited_for

log = logging.getLogger("prefect_tpu.pools")
MAX_SHOWN = 20
"""Names of saved pools in an error."""


def load_pool(slug: str) -> TpuSlicePool:
    """The pool that is saved under "tpu-slice-pool/NAME".

    Raises:
        ConfigurationError: there is none of that name: which there are, and the command that makes one. Or what is
            saved is not valid any more.
        ProvisioningError: Prefect's API does not say.
    """
    name = slug.rpartition("/")[2]
    try:
        return _load(name)
    except (ValidationError, RuntimeError) as error:
        raise ConfigurationError(_invalid(slug, error)) from error
    except ValueError:
        raise ConfigurationError(_missing(slug)) from None
    except Exception as error:
        raise ProvisioningError(
            f"Prefect's API did not give the pool {slug!r}: {type(error).__name__}: {error}. Is PREFECT_API_URL right, "
            "and does it answer? `prefect-tpu doctor` looks."
        ) from error


def find_pool(name: str) -> TpuSlicePool | None:
    """The pool that is saved under this name; None if there is none, or Prefect's API does not answer."""
    try:
        return _load(name)
    except (ValidationError, RuntimeError) as error:
        raise ConfigurationError(_invalid(f"tpu-slice-pool/{name}", error)) from error
    except Exception as error:  # noqa: BLE001 - there need not be one
        log.debug("no pool %r: %r", name, error)
        return None


def _load(name: str) -> TpuSlicePool:
    found: Any = waited_for(TpuSlicePool.load, name)
    assert isinstance(found, TpuSlicePool)
    return found


def saved_pools() -> list[str]:
    """Slugs of all saved pools, in order of their names."""
    return saved_names("tpu-slice-pool")


def saved_names(type_slug: str) -> list[str]:
    """ "TYPE/NAME" of all saved blocks of a type, in order of their names."""
    with get_client(sync_client=True) as client:
        kind = client.request("GET", "/block_types/slug/{slug}", path_params={"slug": type_slug}).json()
        only = BlockDocumentFilter(block_type_id=BlockDocumentFilterBlockTypeId(any_=[kind["id"]]))
        body = {"block_documents": only.model_dump(mode="json"), "include_secrets": False}
        found = client.request("POST", "/block_documents/filter", json=body).json()
    return sorted(f"{type_slug}/{one['name']}" for one in found if one.get("name"))


def _invalid(slug: str, error: Exception) -> str:
    return f"the pool saved as {slug!r} is not valid (any more): {error.__cause__ or error}. Save it again."


def _missing(slug: str) -> str:
    try:
        names = saved_pools()
    except Exception as error:  # noqa: BLE001 - no block type yet, or an API that does not answer
        log.debug("cannot list pools: %r", error)
        names = []
    there = ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "") if names else "none"
    return (
        f"there is no pool {slug!r}. Saved pools: {there}. Make one in Prefect's UI under Blocks, after `prefect block "
        f"register -m prefect_tpu`, or in Python: TpuSlicePool(accelerator_type=..., topology=..., "
        f"fleet=RayFleetBlock(address=...)).save({slug.rpartition('/')[2]!r})"
    )
