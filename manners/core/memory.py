"""How the process asks the operating system for memory."""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process; says whether the C library could be told (glibc only).

    By default glibc gives every large block back when it is freed, and a training step frees and asks for the same gigabytes again
    and again: each time the system hands out pages one by one and fills them with zeros (docs/decisions.md has the cost). The
    peak stays what it was. Set MANNERS_MALLOC=default to leave the C library alone.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("MANNERS_MALLOC") == "default":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_THRESHOLD, 2**30) and library.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
