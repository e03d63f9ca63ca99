"""Keep the large temporary tensors of a training step in the process instead of handing them back each time.

glibc gives every block above 128 kB (by default) a mapping of its own and unmaps it when freed, so each step's
activations are page-faulted in anew. Raising two thresholds keeps them on the heap, warm for the next step.
"""

from __future__ import annotations

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_freed_memory(limit: int = 1 << 30) -> bool:
    """Ask glibc to reuse freed blocks up to `limit` bytes. False where the C library is another one."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, limit)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, limit))
