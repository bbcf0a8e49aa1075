"""Secret variables of a gang: names of Prefect Secret blocks become their values, in the driver, when a task runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from prefect.blocks.system import Secret
from pydantic import SecretStr

from prefect_tpu.blocks.saved import MAX_SHOWN, saved_names
from prefect_tpu.core.errors import ConfigurationError, ProvisioningError
from prefect_tpu.options.variables import check_secret_value, check_size, reference_of
from prefect_tpu.prefect_api import waited_for

log = logging.getLogger("prefect_tpu.secrets")


def resolve(given: Mapping[str, SecretStr]) -> dict[str, SecretStr]:
    """The value of every variable.

    Raises:
        ConfigurationError: there is no such block, it holds no text, or its text cannot be a variable's value.
        ProvisioningError: Prefect's API does not say.
    """
    values = {name: _value(name, one) for name, one in given.items()}
    try:
        check_size(values)
    except ValueError as error:
        raise ConfigurationError(f"secret_env {error}") from None
    return values


def _value(name: str, given: SecretStr) -> SecretStr:
    block = reference_of(given)
    if not block:
        given.get_secret_value()  # raises for one that a pickle has left behind
        return given
    found = _load(name, block)
    try:
        check_secret_value(name, found.get_secret_value())
    except ValueError as error:
        raise ConfigurationError(f"the Secret block 'secret/{block}' for secret_env: {error}") from None
    return found


def _load(name: str, block: str) -> SecretStr:
    try:
        found = waited_for(Secret.load, block)
    except ValueError:
        raise ConfigurationError(
            f"secret_env: there is no Secret block 'secret/{block}' for {name!r}. Saved ones: {_saved()}. Make it in "
            f"Prefect's UI under Blocks, or in Python: Secret(value=...).save({block!r})"
        ) from None
    except Exception as error:
        raise ProvisioningError(
            f"Prefect's API did not give the Secret block 'secret/{block}' for {name!r}: {type(error).__name__}. Is "
            "PREFECT_API_URL right, and does it answer? `prefect-tpu doctor` looks."
        ) from error
    value = found.value.get_secret_value()
    if not isinstance(value, str):
        raise ConfigurationError(
            f"secret_env: the Secret block 'secret/{block}' for {name!r} holds a {type(value).__name__}, and must hold "
            "a text"
        )
    return SecretStr(value)


def _saved() -> str:
    try:
        names = saved_names("secret")
    except Exception as error:  # noqa: BLE001 - there is another error to tell
        log.debug("cannot list Secret blocks: %r", error)
        names = []
    return ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "") if names else "none"
