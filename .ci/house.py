"""Count what a reader of this repository has to hold in mind, and fail above the limits.

python .ci/house.py
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LIMITS = {
    "product: lines": 4000,
    "product: kB": 188,
    "product: modules in derain/": 20,
    "product: lines of a function": 60,
    "product: lines over 100 characters": 0,
    "product: conditional expressions per 100 lines": 2.0,
    "product: comprehensions per 100 lines": 3.5,
    "product: modules that import each other": 0,
    "tests: lines": 4000,
}


def own_imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """Return the modules of this repository that a module imports, wherever it does so."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found & modules


def in_circles(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules that import themselves through others."""
    circles = []
    for start in imports:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in imports[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        if start in seen:
            circles.append(start)
    return circles


def longest_function(tree: ast.Module) -> int:
    """Return the lines of a module's longest function, docstrings left out."""
    longest = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if ast.get_docstring(node):
                first = node.body[min(1, len(node.body) - 1)]
            longest = max(longest, (node.end_lineno or 0) - first.lineno + 1)
    return longest


product = []
for pattern in ("*.py", "derain/**/*.py"):
    product += sorted(ROOT.glob(pattern))
texts = {path: path.read_text() for path in product}
trees = {path: ast.parse(text) for path, text in texts.items()}
lines = [line for text in texts.values() for line in text.splitlines()]
nodes = [node for tree in trees.values() for node in ast.walk(tree)]
names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in product}
imports = {names[path]: own_imports(trees[path], set(names.values())) for path in product}
tests = [line for path in ROOT.glob("tests/**/*.py") for line in path.read_text().splitlines()]

hundreds = len(lines) / 100
counts = {
    "product: lines": len(lines),
    "product: kB": round(sum(len(text.encode()) for text in texts.values()) / 1000),
    "product: modules in derain/": sum(name.startswith("derain.") for name in imports),
    "product: lines of a function": max(map(longest_function, trees.values())),
    "product: lines over 100 characters": sum(len(line) > 100 for line in lines),
    "product: conditional expressions per 100 lines": round(
        sum(isinstance(node, ast.IfExp) for node in nodes) / hundreds, 1
    ),
    "product: comprehensions per 100 lines": round(
        sum(isinstance(node, LOOPS) for node in nodes) / hundreds, 1
    ),
    "product: modules that import each other": len(in_circles(imports)),
    "tests: lines": len(tests),
}
for name, count in counts.items():
    print(f"{name}: {count} of at most {LIMITS[name]}")
sys.exit(any(count > LIMITS[name] for name, count in counts.items()))
