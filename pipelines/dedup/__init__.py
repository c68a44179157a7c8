"""Exact and near duplicates: fingerprints of whole batches, an exact Hamming index, and the resolver that names the kept document."""
