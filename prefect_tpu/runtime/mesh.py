"""Device meshes over all slices of a gang."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefect_tpu.core.errors import ConfigurationError
from prefect_tpu.runtime.process import Context, current

if TYPE_CHECKING:
    from jax.sharding import Mesh


def mesh(axis_names: Sequence[str], ici_shape: Sequence[int], dcn_shape: Sequence[int] | None = None) -> Mesh:
    """A device mesh over all slices of the gang, laid out so that fast axes stay inside a slice.

    The size of an axis is its `dcn_shape` times its `ici_shape`. On TPUs the devices are ordered by
    `jax.experimental.mesh_utils`; on simulated slices by the same rule, with each gang slice as one.

    Args:
        axis_names: one name for each axis.
        ici_shape: how the devices of one slice are laid out; its product is the devices per slice.
        dcn_shape: how the slices are laid out; its product is the number of slices. Default: all slices
            along the first axis.

    Raises:
        NotInGangError: outside a gang.
        ConfigurationError: shapes that do not fit the slices; the text says what there is.
    """
    context = current()
    import jax
    import numpy

    for name, given in (("axis_names", axis_names), ("ici_shape", ici_shape), ("dcn_shape", dcn_shape)):
        if given is not None and (isinstance(given, str) or not isinstance(given, Sequence)):
            raise ConfigurationError(f"{name} must be a tuple, one entry for each axis of the mesh, got {given!r}")
    names, ici = tuple(axis_names), tuple(ici_shape)
    dcn = (context.num_slices, *(1,) * (len(ici) - 1)) if dcn_shape is None else tuple(dcn_shape)
    slices = _devices_by_slice(jax.devices(), context)
    per_slice = len(slices[0])
    if len(names) != len(ici) or len(ici) != len(dcn) or not ici:
        raise ConfigurationError(
            f"axis_names {names}, ici_shape {ici} and dcn_shape {dcn} must be of one length, at least 1"
        )
    if math.prod(ici) != per_slice or math.prod(dcn) != len(slices):
        raise ConfigurationError(
            f"ici_shape {ici} needs {math.prod(ici)} devices per slice and dcn_shape {dcn} needs {math.prod(dcn)} "
            f"slices; there are {per_slice} devices per slice and {len(slices)} slices"
        )
    if slices[0][0].platform == "tpu":
        from jax.experimental import mesh_utils

        if len(slices) == 1:
            layout = mesh_utils.create_device_mesh(ici, slices[0])
        else:
            layout = mesh_utils.create_hybrid_device_mesh(ici, dcn, [one for devices in slices for one in devices])
    else:
        layout = _hybrid_layout(slices, ici, dcn, numpy)
    return jax.sharding.Mesh(layout, names)


def _devices_by_slice(devices: Sequence[Any], context: Context) -> list[list[Any]]:
    def slice_of(device: Any) -> int:
        if device.platform == "tpu":
            return int(getattr(device, "slice_index", 0))
        return int(device.process_index) // context.hosts_per_slice  # CPU devices all claim slice 0

    groups: dict[int, list[Any]] = {}
    for device in devices:
        groups.setdefault(slice_of(device), []).append(device)
    ordered = [groups[index] for index in sorted(groups)]
    if len(ordered) != context.num_slices or len({len(group) for group in ordered}) != 1:
        raise ConfigurationError(
            f"JAX sees {len(devices)} devices on {len(ordered)} slices, the gang has {context.num_slices} slices; "
            "a mesh over all of them needs jax_distributed to be on (the default for more than one host)"
        )
    return ordered


def _hybrid_layout(slices: Sequence[Sequence[Any]], ici: tuple[int, ...], dcn: tuple[int, ...], numpy: Any) -> Any:
    blocks = numpy.empty(dcn, dtype=object)
    for index, devices in zip(numpy.ndindex(*dcn), slices, strict=True):
        inner = numpy.empty(len(devices), dtype=object)
        inner[:] = devices
        blocks[index] = inner.reshape(ici)
    return numpy.block(blocks.tolist())
