"""Everything that runs but the scripts, with the four modules beside this folder.

A program with other modules of their names keeps them: derain is imported at once with ours, then theirs come back.
"""

import importlib.machinery
import pkgutil
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def _is_ours(name: str) -> bool:
    """Whether a module is the one beside this folder: as it is imported already, or would be."""
    loaded = name in sys.modules
    spec = getattr(sys.modules[name], "__spec__", None) if loaded else importlib.machinery.PathFinder.find_spec(name)
    return spec is not None and bool(spec.origin) and Path(spec.origin).resolve().parent == _ROOT


# A command of ours is run, from a folder that may have modules of these names.
if sys.argv[:1] == ["-m"] and any(word.split(".")[0] == "derain" for word in sys.orig_argv[1:]):
    sys.path.insert(0, str(_ROOT))
elif _others := [name for name in ("networks", "utils", "SSIM", "DerainDataset") if not _is_ours(name)]:
    _theirs = {name: sys.modules.pop(name) for name in _others if name in sys.modules}
    sys.path.insert(0, str(_ROOT))
    try:
        for _module in pkgutil.walk_packages(__path__, "derain."):
            importlib.import_module(_module.name)
    finally:
        sys.path.remove(str(_ROOT))
        for _name in _others:
            sys.modules.pop(_name, None)
        sys.modules.update(_theirs)
