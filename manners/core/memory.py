"""How the process asks the operating system for memory, and how much of it it holds."""

import ctypes
import gc
import os
import platform
import resource
import sys
from pathlib import Path

import psutil

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
PRIMITIVES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""oneDNN keeps compiled code for each shape of a product, by default of 1,024, and torch's layer above it (ideep) does so once more, some
0.2 MB a shape. Micro-batches differ in length, so old shapes seldom come again."""
TUNABLES, NO_SMALL_CACHE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process; says whether the C library could be told (glibc only).

    By default glibc gives every large block back when it is freed, and a training step frees and asks for the same gigabytes again
    and again: each time the system hands out pages one by one and fills them with zeros (docs/decisions.md has the cost). The
    peak stays what it was. Set MANNERS_MALLOC=default to leave the C library alone.
    """
    for name, value in PRIMITIVES.items():
        os.environ.setdefault(name, value)  # read when oneDNN is first used
    if not _glibc():
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_THRESHOLD, 2**30) and library.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def restart_without_small_cache() -> None:
    """Start this program anew, with glibc's cache of small blocks off; does nothing where that is so already or cannot be.

    torch aligns its tensors to 64 bytes. glibc cuts the margin off each and caches it for small objects; when the tensor is freed, the
    hole lacks the margin, and no tensor of the same size fits into it again. Only a program that starts can be told to have no such
    cache. What it costs and saves is in docs/memory.md.
    """
    told = os.environ.get(TUNABLES, "")
    if _glibc() and "glibc.malloc.tcache_count" not in told:
        os.environ[TUNABLES] = ":".join(filter(None, [told, NO_SMALL_CACHE]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _glibc() -> bool:
    """Whether the C library is glibc and may be told how to keep memory."""
    return platform.libc_ver()[0] == "glibc" and os.environ.get("MANNERS_MALLOC") != "default"


def give_back_freed_memory() -> None:
    """Return what is not in use any more to the system, so that `resident` is what is. Without glibc it only looks for cycles."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return psutil.Process().memory_info().rss


def peak_resident() -> int:
    """The most bytes of this process that were in memory at once, since it began or since `forget_peak`."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> bool:
    """Let `peak_resident` begin anew, so that loading a model does not hide what training takes. Says whether it could (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
