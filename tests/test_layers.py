"""A module imports only from floors below its own, and from its own room."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "regard"

# Longest prefix decides. A room is one entry; its files may import each other.
FLOORS = {
    "errors": 0,
    "card": 1,
    "config": 1,
    "text": 1,
    "data": 1,
    "files": 1,
    "images": 1,
    "machine": 1,
    "metrics": 1,
    "plots": 1,
    "models": 2,
    "search": 2,
    "data.features": 2,
    "data.fingerprints": 2,
    "data.shards": 2,
    "build": 3,
    "data.batches": 3,
    "describe": 3,
    "checkpoint": 4,
    "exported": 4,
    "finished": 4,
    "rerank": 4,
    "ensemble": 5,
    "captioner": 6,
    "training": 6,
    "comparison": 6,
    "evaluation": 6,
    "gaze_check": 6,
    "apps": 7,
    "cli": 8,
    "__main__": 9,
}

# Neighbours on a floor: search speaks of a decoder's state and step (types alone), and passes over
# the vocabulary in compiled loops; figures lay maps
# over photos as photos are placed; the cache is filled in the lanes that encoders are fast in.
ALLOWED = {
    ("search", "models.decoder"),
    ("search", "models.beams"),
    ("search", "models.native"),
    ("plots", "images"),
    ("data.features", "models.lanes"),
}


def room(module: str) -> str:
    matches = [r for r in FLOORS if module == r or module.startswith(r + ".")]
    assert matches, f"{module} has no floor: give it one in FLOORS"
    return max(matches, key=len)


def imports(file: Path) -> set[str]:
    """Every regard module that a file imports, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the floor"
            found.add(node.module or "")
    return {m.removeprefix("regard").lstrip(".") for m in found if m.split(".")[0] == "regard"}


def modules() -> dict[str, Path]:
    files = {".".join(f.relative_to(SOURCE).with_suffix("").parts): f for f in SOURCE.rglob("*.py")}
    return {name: f for name, f in files.items() if not name.endswith("__init__")}


def test_there_is_something_to_check():
    assert len(modules()) > 25
    assert set(map(room, modules())) == set(FLOORS)


def test_every_import_goes_down():
    wrong = []
    for name, file in modules().items():
        here = room(name)
        for target in imports(file) - {""}:
            if (name, target) in ALLOWED:
                continue
            there = room(target)
            same_room = there == here or there.split(".")[0] == here.split(".")[0]
            if FLOORS[there] > FLOORS[here] or (FLOORS[there] == FLOORS[here] and not same_room):
                wrong.append(f"{name} (floor {FLOORS[here]}) imports {target} ({FLOORS[there]})")
    assert not wrong, "\n".join(wrong)


def test_the_rooms_without_torch_stay_without():
    heavy = {"torch", "lightning", "transformers"}
    for name, file in modules().items():
        if FLOORS[room(name)] <= 1:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                assert not {n.split(".")[0] for n in names} & heavy, name


def test_no_two_modules_import_each_other():
    graph = {name: imports(file) for name, file in modules().items()}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done:
            return
        for target in graph.get(name, ()):
            walk(target, (*path, name))
        done.add(name)

    for name in graph:
        walk(name, ())
