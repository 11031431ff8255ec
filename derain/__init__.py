"""Everything that runs but the scripts."""
