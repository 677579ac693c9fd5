"""Who runs the restoration: pools, the reorder buffer, the ledger.

`RayPool` is imported from `streamdeblur.runtime.ray_pool`, what joins or starts Ray from `ray_session` beside
it, so that nothing else pays for Ray.
"""

from streamdeblur.runtime.ledger import (
    FrameRecord,
    Ledger,
    LedgerGap,
    LedgerHeader,
    LedgerLine,
    LedgerSummary,
    Status,
    TileCounts,
    read_ledger,
)
from streamdeblur.runtime.pool import Corrections, Factory, InProcessPool, Pool, Result, Work, one_line
from streamdeblur.runtime.reorder import ReorderBuffer

__all__ = [
    "Corrections",
    "Factory",
    "FrameRecord",
    "InProcessPool",
    "Ledger",
    "LedgerGap",
    "LedgerHeader",
    "LedgerLine",
    "LedgerSummary",
    "Pool",
    "ReorderBuffer",
    "Result",
    "Status",
    "TileCounts",
    "Work",
    "one_line",
    "read_ledger",
]
