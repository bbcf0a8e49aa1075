"""Where slices come from, saved once in Prefect and named in one string. Runs: driver.

Register them with `prefect block register -m prefect_tpu`; the forms are then in Prefect's UI under Blocks.
"""

from prefect_tpu.blocks.fleets import LocalFleetBlock, RayFleetBlock
from prefect_tpu.blocks.pool import TpuSlicePool
from prefect_tpu.blocks.queued import QueuedResourceFleetBlock
from prefect_tpu.blocks.saved import find_pool, load_pool, saved_pools

__all__ = [
    "LocalFleetBlock",
    "QueuedResourceFleetBlock",
    "RayFleetBlock",
    "TpuSlicePool",
    "find_pool",
    "load_pool",
    "saved_pools",
]
