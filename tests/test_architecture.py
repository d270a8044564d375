"""The look of the house, read from the code: imports run one way, without circles, and docs/house.md shows them.

`python tests/test_architecture.py` writes the picture anew.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "house.md"
START, END = "<!-- rooms: written by tests/test_architecture.py -->", "<!-- end of rooms -->"
# From the ground up: a room imports from itself and from those before it.
ROOMS = (
    *(
        "errors",
        "files",
        "ops",
        "nn",
        "fit",
        "kinds",
        "config",
        "model",
        "models",
        "data",
        "energy",
        "engine",
    ),
    *("report", "run", "lab", "cli"),
)
MOST_ROOMS, MOST_LINES = 22, 33_222

Graph = dict[str, set[str]]


def sources() -> dict[str, Path]:
    """Every module of the package and its file; ecoformer.models lies in models/."""
    places = {"ecoformer": ROOT / "ecoformer", "ecoformer.models": ROOT / "models"}
    found = {}
    for package, folder in places.items():
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder)
            if package == "ecoformer" and inside.parts[0] in ("models", "configs"):  # links
                continue
            parts = [package, *inside.with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> Graph:
    """Module -> modules that it imports anywhere in its file: at the top, late, or for type checkers alone."""
    modules = sources()
    graph: Graph = defaultdict(set)

    def known(name: str) -> str:
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            graph[module] |= {known(name) for name in names if name.split(".")[0] == "ecoformer"} - {module}
    return graph


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for node in list(graph):
        if node not in index:
            visit(node)
    return found


def picture(graph: Graph) -> str:
    """Rooms and what each takes from, as a Mermaid graph; an arrow that another path makes needless is left out."""
    edges = {(room(a), room(b)) for a, others in graph.items() for b in others if room(a) != room(b)}
    edges = {(a, b) for a, b in edges if a in ROOMS and b in ROOMS}
    reach: dict[str, set[str]] = {}
    for name in ROOMS:
        reach[name] = {b for a, b in edges if a == name}
        reach[name] |= {far for near in reach[name] for far in reach[near]}
    direct = [(a, b) for a, b in edges if not any(b in reach[c] for x, c in edges if x == a and c != b)]
    lines = [f"    {a} --> {b}" for a, b in sorted(direct, key=lambda edge: (-ROOMS.index(edge[0]), edge[1]))]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def test_imports_run_one_way() -> None:
    wrong = []
    for module, others in imports().items():
        if room(module) in ("", "__main__"):  # `import ecoformer` loads names late; __main__ is the command line
            continue
        wrong += [
            f"{module} -> {other}"
            for other in others
            if room(other) and ROOMS.index(room(other)) > ROOMS.index(room(module))
        ]
    assert not wrong


def test_there_are_no_circles() -> None:
    assert circles({module: others for module, others in imports().items() if module != "ecoformer"}) == []


def test_the_house_stays_small() -> None:
    beside = [
        path for path in (ROOT / "scripts", ROOT / "train.py", ROOT / "eval.py", ROOT / "models") if path.exists()
    ]
    loose = [path for path in (ROOT / "ecoformer").iterdir() if path.suffix == ".py"]
    folders = [
        path for path in (ROOT / "ecoformer").iterdir() if (path / "__init__.py").exists() and not path.is_symlink()
    ]
    assert len(beside) + len(loose) + len(folders) <= MOST_ROOMS
    shims = [*(ROOT / "scripts").glob("*.py"), ROOT / "train.py", ROOT / "eval.py"]
    assert sum(len(path.read_text().splitlines()) for path in (*sources().values(), *shims)) <= MOST_LINES
    assert all(len(path.read_text().splitlines()) <= 14 for path in shims), "a script is a shim"


def test_engine_names_no_attention_kind_and_ops_no_module() -> None:
    graph = imports()
    assert not [m for m, others in graph.items() if room(m) == "engine" for o in others if room(o) == "kinds"]
    ops = [path.read_text() for module, path in sources().items() if room(module) == "ops"]
    assert not any("nn.Module" in text for text in ops)


def test_the_page_shows_the_house_as_it_is() -> None:
    text = PAGE.read_text()
    shown = text.partition(START)[2].partition(END)[0].strip()
    assert shown == picture(imports()), "run python tests/test_architecture.py"


if __name__ == "__main__":
    page = PAGE.read_text()
    before, after = page.partition(START)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n{picture(imports())}\n{END}{after}")
    sys.exit(0)
