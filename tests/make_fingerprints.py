"""Write derain/fingerprints.json from the original data sets: python -m tests.make_fingerprints"""

import json
from pathlib import Path

from derain.pairs import find_pairs, read_pair
from derain.sets import STORE, pair_hash

stored = {}
for folder in ("test/Rain100H", "test/Rain100L", "test/Rain12", "train/RainTrainL"):
    pairs = find_pairs(Path("datasets", folder))
    stored[Path(folder).name] = [pair_hash(*read_pair(pair)) for pair in pairs]
STORE.write_text(json.dumps(stored) + "\n")
