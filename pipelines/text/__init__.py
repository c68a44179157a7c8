"""Text as flat UTF-8 buffers, the flags of every code point, and words of bytes: what all compiled kernels over text stand on."""
