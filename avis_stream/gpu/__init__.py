"""What runs on a GPU beside torch: pictures, sound and masks on their way in and out, and kernels compiled when needed.

Needs the extra `[cuda]` (cupy) and a usable device; `unusable_reason()` says what is missing. Importing this asks for
neither.
"""

from avis_stream.gpu.media import log_mel, network_input, pack_masks
from avis_stream.gpu.runtime import compile_kernels, unusable_reason

__all__ = ["compile_kernels", "log_mel", "network_input", "pack_masks", "unusable_reason"]
