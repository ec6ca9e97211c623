"""Imports go downward only, and every module can be imported."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import manners

PACKAGE = Path(manners.__file__).parent
LAYERS = [
    {"cli", "__main__"},
    {"pipeline", "serve", "recipe", "commands"},
    {"report"},
    {"train"},
    {"evaluate"},
    {"reason"},
    {"feedback"},
    {"data"},
    {"model"},
    {"ops"},
    {"core"},
    {"__init__"},
]
"""From the top."""
DEPTH = {part: depth for depth, layer in enumerate(LAYERS) for part in layer}
HEAVY = {"torch", "transformers", "peft", "datasets", "safetensors", "accelerate"}


def modules(package: Path) -> Iterator[Path]:
    return (path for path in sorted(package.rglob("*.py")))


def imported(path: Path, package: Path) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever in it, `from manners import model` as `manners.model`."""
    here = ["manners", *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(filter(None, [start, node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def part(name: str, package: Path) -> str | None:
    """The part of the package that a dotted name is in; None for other packages'."""
    words = name.split(".")
    if words[0] != "manners":
        return None
    inside = len(words) > 1 and ((package / words[1]).is_dir() or (package / f"{words[1]}.py").is_file())
    return words[1] if inside else "__init__"


def faults(package: Path) -> list[str]:
    """A line for each import that is not allowed."""
    found = []
    for path in modules(package):
        own = path.relative_to(package).with_suffix("").parts[0]
        if own not in DEPTH:
            found.append(f"{own} has no layer")
            continue
        for name in imported(path, package):
            other = part(name, package)
            if other is None:
                if own == "core" and name.split(".")[0] in HEAVY:
                    found.append(f"{path.relative_to(package)} imports {name}")
            elif other not in DEPTH or DEPTH[other] < DEPTH[own] or (own == "ops" and other not in ("ops", "core", "__init__")):
                found.append(f"{path.relative_to(package)} imports {name}")
    return found


def test_imports_go_downward():
    assert faults(PACKAGE) == []
    assert len(list(modules(PACKAGE))) >= 20
    assert sum(part(name, PACKAGE) is not None for path in modules(PACKAGE) for name in imported(path, PACKAGE)) > 50


def test_planted_faults_are_found(tmp_path: Path):
    package = tmp_path / "manners"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.jsonl"))
    assert faults(package) == []
    planted = {
        "core/up.py": "from manners.data import chat",
        "core/heavy.py": "def f():\n    import torch.nn",
        "core/package.py": "from manners import cli",
        "ops/up.py": "if True:\n    import manners.model.tree as tree",
        "model/up.py": "def f():\n    from manners.data.chat import ChatFormat",
        "model/relative.py": "from ..train import sft",
        "data/lazy.py": "import importlib\nimportlib.import_module('manners.train.sft')",
        "evaluate/up.py": "from manners import train",
        "strange.py": "",
    }
    for name, text in planted.items():
        (package / name).write_text(text)
    assert sorted(faults(package)) == [
        "core/heavy.py imports torch.nn",
        "core/package.py imports manners.cli",
        "core/up.py imports manners.data.chat",
        "data/lazy.py imports manners.train.sft",
        "evaluate/up.py imports manners.train",
        "model/relative.py imports manners.train.sft",
        "model/up.py imports manners.data.chat.ChatFormat",
        "ops/up.py imports manners.model.tree",
        "strange has no layer",
    ]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=PACKAGE.parent)


def dotted(path: Path) -> str:
    words = ["manners", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def test_every_module_can_be_imported_and_says_nothing():
    names = [dotted(path) for path in modules(PACKAGE) if path.name != "__main__.py"]
    assert "manners.train.sft" in names and "manners.core" in names
    done = python("-c", "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)", *names)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_core_and_the_command_line_come_without_torch():
    """So that `manners --help` answers at once."""
    names = [dotted(path) for path in modules(PACKAGE / "core")] + ["manners.cli", "manners.commands"]
    told = f"import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = python("-c", told, *names)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
    assert len(names) >= 8


def test_python_m_manners():
    done = python("-m", "manners", "--version")
    assert (done.stdout, done.stderr, done.returncode) == (f"{manners.__version__}\n", "", 0)
    wrong = python("-m", "manners", "sftt")
    assert wrong.returncode == 2 and "did you mean 'sft'" in wrong.stderr.lower() and wrong.stdout == ""
