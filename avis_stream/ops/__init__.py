"""Native operators with a plain PyTorch reference each; the dispatcher chooses, `info()` says what it chose."""

from avis_stream.ops._library import OpsInfo, ReferenceKernelWarning, info, require_native
from avis_stream.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_grid_sample
from avis_stream.ops.ms_deform_attn_fused import ms_deform_attn_fused
from avis_stream.ops.range_attn import range_attn
from avis_stream.ops.range_attn_paged import kv_write_, range_attn_paged
from avis_stream.ops.ranges import AttentionPlan, dense_mask, ring_pages, rolling_plan, window_plan

__all__ = [
    "AttentionPlan",
    "OpsInfo",
    "ReferenceKernelWarning",
    "dense_mask",
    "info",
    "kv_write_",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_grid_sample",
    "range_attn",
    "range_attn_paged",
    "require_native",
    "ring_pages",
    "rolling_plan",
    "window_plan",
]
