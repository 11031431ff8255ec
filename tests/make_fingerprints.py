"""Write derain/fingerprints.json from the original data sets.

python -m tests.make_fingerprints
"""

import json
from pathlib import Path

from derain.pairs import find_pairs, read_pair
from derain.sets import STORE, fingerprint, pair_hash

FOLDERS = {
    "Rain100H": "datasets/test/Rain100H",
    "Rain100L": "datasets/test/Rain100L",
    "Rain12": "datasets/test/Rain12",
    "RainTrainL": "datasets/train/RainTrainL",
}

stored = {}
for name, folder in FOLDERS.items():
    stored[name] = [pair_hash(*read_pair(pair)) for pair in find_pairs(Path(folder))]
    print(name, fingerprint(stored[name]))
STORE.write_text(json.dumps(stored) + "\n")
