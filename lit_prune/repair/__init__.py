"""After a cut: what is left answers as the whole network did, as far as it can be predicted; no training."""
