"""Byte-level BPE as compiled kernels over UTF-8 buffers: the same ids as the tokenizers package, many times faster, and checked against it.

pieces   text -> pieces that merges do not cross: the regular expressions of common tokenizers, written as scanners
bpe      piece -> ids: merges by rank, behind a cache of pieces
engine   which tokenizers the kernels can stand in for
"""
