"""The judge took no part in anything that it judges: the imports say so."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raft_diffusion

PACKAGE = Path(raft_diffusion.__file__).parent
JUDGE = "raft_diffusion.pocket.judge"
ALLOWED = {"raft_diffusion.pocket.recipe", "raft_diffusion.pocket.quality", "raft_diffusion.scales"}
# What samples, ranks, tunes, guards, stops, stores or shows. A name with a dot at its end stands for all below it.
CLEAN = (
    "raft_diffusion.core.",
    "raft_diffusion.rewards.",
    "raft_diffusion.diffusion.",
    "raft_diffusion.pocket",
    *(f"raft_diffusion.pocket.{name}" for name in ("world", "objects", "damage", "nets")),
    "raft_diffusion.guarding",
    "raft_diffusion.terminal",
    "raft_diffusion.report",
    "raft_diffusion.evaluate",
    "raft_diffusion.gallery",
    "raft_diffusion.rank",
    "raft_diffusion.webui",
    "raft_diffusion.sd15.",
)


def modules(package: Path) -> dict[str, Path]:
    """Module name -> file, for every module of the package."""
    names = {}
    for path in package.rglob("*.py"):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def running(node: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk` without what only a type checker reads."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from running(child)


def imported(name: str, path: Path, node: ast.AST) -> Iterator[str]:
    """The absolute names of all that `node` and what is inside it, functions included, may import when it runs."""
    for inner in running(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            kept = parts[: len(parts) - inner.level + 1] if inner.level else []
            base = ".".join([*kept, *filter(None, [inner.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in inner.names)
        elif isinstance(inner, ast.Call) and inner.args and isinstance(inner.args[0], ast.Constant):
            called = inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
            if called in ("import_module", "__import__"):
                target = str(inner.args[0].value)
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                yield package + target if target.startswith(".") else target


def graph(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that importing or running it may import, parents included."""
    files = modules(package)
    edges: dict[str, set[str]] = {}
    for name, path in files.items():
        targets = set()
        for target in imported(name, path, ast.parse(path.read_text(encoding="utf-8"))):
            if target.endswith(".*"):
                targets |= {other for other in files if other.rpartition(".")[0] == target[:-2]}
            parts = target.split(".")
            targets |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        parents = name.split(".")
        targets |= {".".join(parents[:count]) for count in range(1, len(parents))}
        edges[name] = targets & set(files) - {name}
    return edges


def way(edges: dict[str, set[str]], start: str, goal: str) -> list[str]:
    """A chain of imports from start to goal, empty if there is none."""
    chains, seen = [[start]], {start}
    for chain in chains:
        if chain[-1] == goal:
            return chain
        for name in sorted(edges[chain[-1]] - seen):
            seen.add(name)
            chains.append([*chain, name])
    return []


def importers(package: Path, goal: str) -> set[str]:
    return {name for name, targets in graph(package).items() if goal in targets}


def test_nothing_that_samples_ranks_tunes_guards_or_stops_can_import_the_judge():
    edges = graph(PACKAGE)
    assert JUDGE in edges
    starts = set()
    for clean in CLEAN:
        found = {name for name in edges if name == clean.rstrip(".") or (clean[-1] == "." and name.startswith(clean))}
        assert found, f"{clean} is gone: say here what took its place"
        starts |= found
    assert len(starts) > 20
    assert {name: way(edges, name, JUDGE) for name in sorted(starts) if way(edges, name, JUDGE)} == {}


def test_the_judge_has_three_importers_and_only_what_measures_asks_for_it():
    assert importers(PACKAGE, JUDGE) == ALLOWED
    path = PACKAGE / "scales.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = [node for node in tree.body if JUDGE in imported("raft_diffusion.scales", path, node)]
    assert [node.name for node in parts if isinstance(node, ast.FunctionDef)] == ["make_judge"] and len(parts) == 1
    path = PACKAGE / "assemble.py"
    tree, scales = ast.parse(path.read_text(encoding="utf-8")), "raft_diffusion.scales"
    parts = [node for node in tree.body if scales in imported("raft_diffusion.assemble", path, node)]
    assert [node.name for node in parts if isinstance(node, ast.FunctionDef)] == ["run_evaluation"] and len(parts) == 1


def test_nothing_else_opens_the_judges_weights():
    """`pocket.JUDGE` is the folder."""
    users = set()
    for name, path in modules(PACKAGE).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (getattr(node, field, None) for field in ("id", "attr", "name"))
            if isinstance(node, (ast.Name, ast.Attribute, ast.alias)) and "JUDGE" in names:
                users.add(name)
    pictures = {"raft_diffusion.pocket", "raft_diffusion.pocket.quality", "raft_diffusion.scales"}
    assert users == pictures | {"raft_diffusion.llm.pocket", "raft_diffusion.llm.judges"}


def test_the_judge_of_texts_is_reached_by_the_evaluation_alone():
    """`llm.assemble` makes every object of a text run; of what it holds, one function asks for judges."""
    goal, judges = "raft_diffusion.llm.pocket.judge", "raft_diffusion.llm.judges"
    edges = graph(PACKAGE)
    making = {"raft_diffusion.llm.pocket.recipe", "raft_diffusion.llm.pocket.build"}
    assert importers(PACKAGE, goal) == making | {judges}
    assert importers(PACKAGE, judges) == {"raft_diffusion.llm.assemble"}
    of_texts = {name for name in edges if name.startswith("raft_diffusion.llm")}
    clean = of_texts - making - {goal, judges, "raft_diffusion.llm.assemble"}
    assert len(clean) > 15
    clean |= {name for name in edges if name.startswith(("raft_diffusion.core", "raft_diffusion.rewards"))}
    clean |= {"raft_diffusion.guarding", "raft_diffusion.report", "raft_diffusion.terminal"}
    assert {name: way(edges, name, goal) for name in sorted(clean) if way(edges, name, goal)} == {}
    path = PACKAGE / "llm" / "assemble.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = [node for node in tree.body if judges in imported("raft_diffusion.llm.assemble", path, node)]
    assert [node.name for node in parts if isinstance(node, ast.FunctionDef)] == ["run_evaluation"] and len(parts) == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("loop.py", "from .pocket.judge import Judge"),
        ("loop.py", "from .pocket import judge"),
        ("loop.py", "from world.pocket import judge as other"),
        ("loop.py", "from .pocket import *"),
        ("loop.py", "import world.pocket.judge"),
        ("loop.py", "def f():\n    def g():\n        from .pocket.judge import Judge"),
        ("loop.py", "if 1:\n    from . import middle"),
        ("loop.py", "import importlib\nimportlib.import_module('world.pocket.judge')"),
        ("loop.py", "from importlib import import_module\nimport_module('.pocket.judge', __package__)"),
        ("core/deep.py", "from ..pocket.judge import Judge"),
        ("core/deep.py", "from .. import middle"),
        ("core/deep.py", "from ..pocket import make"),
        ("core/__init__.py", "from ..pocket.judge import Judge"),
    ],
)
def test_the_check_sees_a_planted_import(tmp_path, place, line):
    root = tmp_path / "world"
    files = {
        "__init__.py": "",
        "loop.py": "import json",
        "middle.py": "def late():\n    from .pocket import judge",
        "core/__init__.py": "",
        "core/deep.py": "from .. import loop as fine",
        "pocket/__init__.py": "",
        "pocket/make.py": "from . import judge",
        "pocket/judge.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    for start in ("world.loop", "world.core.deep"):
        assert way(graph(root), start, "world.pocket.judge") == []
    (root / place).write_text(line, encoding="utf-8")
    chain = way(graph(root), "world.core.deep", "world.pocket.judge")
    chain = chain or way(graph(root), "world.loop", "world.pocket.judge")
    assert chain and chain[-1] == "world.pocket.judge"


@pytest.mark.slow
def test_a_training_process_never_loads_the_judge():
    code = (
        "import importlib, pkgutil, sys, raft_diffusion.core as core\n"
        "for module in pkgutil.iter_modules(core.__path__, 'raft_diffusion.core.'):\n"
        "    importlib.import_module(module.name)\n"
        "import raft_diffusion.rewards.clip, raft_diffusion.rewards.custom, raft_diffusion.rewards.compress\n"
        "import raft_diffusion.diffusion, raft_diffusion.assemble, raft_diffusion.terminal, raft_diffusion.report\n"
        "print(*(name for name in sys.modules if name.startswith('raft_diffusion')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"raft_diffusion.core.loop", "raft_diffusion.rewards.clip", "raft_diffusion.diffusion.tuner"} <= loaded
    assert JUDGE not in loaded
