"""Count what keeps the repository readable, and fail if it grows past its limits.

python .ci/house.py
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"lines of product code": 7000, "lines of a module": 350, "lines of a function": 60, "uses of settings": 35}


def product() -> list[Path]:
    """Return the modules that run: all but tests and benchmarks."""
    return [p for folder in ("*.py", "derain/**/*.py", "examples/*.py") for p in sorted(ROOT.glob(folder))]


def functions(path: Path) -> list[tuple[int, str]]:
    """Return length and name of every function, docstrings left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node):
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            found.append((length, f"{path.relative_to(ROOT)}: {node.name}"))
    return found


def passes(path: Path) -> int:
    """Return how many calls hand on a whole settings object."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return sum(isinstance(a, ast.Name) and a.id == "settings" for call in calls for a in call.args)


modules = {path: len(path.read_text().splitlines()) for path in product()}
longest_module = max(modules, key=lambda path: modules[path])
longest_function = max(f for path in modules for f in functions(path))
counts = {
    "lines of product code": (sum(modules.values()), f"{len(modules)} modules"),
    "lines of a module": (modules[longest_module], longest_module.relative_to(ROOT)),
    "lines of a function": longest_function,
    "uses of settings": (sum(passes(path) for path in modules), "calls that hand on the settings"),
}
for name, (count, what) in counts.items():
    print(f"{name}: {count} of at most {LIMITS[name]} ({what})")
sys.exit(any(count > LIMITS[name] for name, (count, _) in counts.items()))
