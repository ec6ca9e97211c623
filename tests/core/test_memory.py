"""How the process is told to ask for memory: what is put into the environment, and that the command starts itself anew once."""

import os
import platform
import subprocess
import sys

import pytest

from manners.core import memory
from manners.ops.products import engine

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the settings")


@pytest.fixture
def started(monkeypatch):
    """What `os.execv` was called with, instead of being called."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
    monkeypatch.delenv("MANNERS_MALLOC", raising=False)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    return calls


@glibc
def test_the_program_starts_anew_once(started, monkeypatch):
    memory.restart_without_small_cache()
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.tcache_count=0"
    memory.restart_without_small_cache()
    assert len(started) == 1
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    memory.restart_without_small_cache()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0:glibc.malloc.tcache_count=0" and len(started) == 2


@glibc
def test_what_the_user_has_set_is_left_alone(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=7")
    memory.restart_without_small_cache()
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setenv("MANNERS_MALLOC", "default")
    memory.restart_without_small_cache()
    assert started == []


@glibc
def test_the_real_command_starts_anew_with_its_arguments_and_exit_code():
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "MANNERS_MALLOC")}
    code = (
        "import os, sys; from manners.core.memory import restart_without_small_cache as again; again(); "
        "print(sys.argv[1:], os.environ['GLIBC_TUNABLES']); sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code, "a b", "--c"], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.returncode) == ("['a b', '--c'] glibc.malloc.tcache_count=0\n", 3), done.stderr
    wrong = subprocess.run([sys.executable, "-m", "manners", "sftt"], capture_output=True, text=True, env=environment)
    assert wrong.returncode == 2


@pytest.mark.parametrize("name", list(memory.PRIMITIVES))
def test_onednn_keeps_few_shapes_unless_told_otherwise(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    memory.keep_freed_memory()
    assert os.environ[name] == memory.PRIMITIVES[name]
    monkeypatch.setenv(name, "7")
    memory.keep_freed_memory()
    assert os.environ[name] == "7"


@glibc
@pytest.mark.skipif(engine() != "onednn", reason="torch's own library keeps no code for shapes")
def test_memory_does_not_grow_with_the_number_of_shapes():
    """300 lengths: without bounds on both caches, what is kept of each adds up."""
    code = """
import os, sys, torch
from manners.core.memory import PRIMITIVES, keep_freed_memory, resident
from manners.ops.products import product
bounded = sys.argv[1] == "bounded"
keep_freed_memory() if bounded else os.environ.update(dict.fromkeys(PRIMITIVES, "1024"))
torch.set_num_threads(1)
x, w = torch.randn(600, 64), torch.randn(64, 64)
product(x, w)
before = resident()
for n in range(300, 600): product(x[:n], w)
print(resident() - before)
"""
    grown = {
        kind: int(subprocess.run([sys.executable, "-c", code, kind], capture_output=True, text=True, check=True).stdout)
        for kind in ("bounded", "unbounded")
    }
    assert grown["bounded"] * 2 < grown["unbounded"], grown
