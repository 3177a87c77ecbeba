"""Records of scores: results.json, evaluation.json, and the names and protocols in them."""
