"""Memory that a step gave back is kept for the next one, instead of going to the system and coming again."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Tell the C library to hold on to freed memory, in this process, from here on.

    glibc gives every block of 32 MiB or more back when it is freed, and the kernel clears each of its pages
    before they are used again: on a CPU that took 13% of a bf16 training step of a small ViT with 256 rows.
    The process keeps its peak of memory until it ends.

    Returns
    -------
    bool
        Whether the C library took it; False where it is not glibc, which then does as it did.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
