"""The columns of the matrix of counts, int64 [n, NUM_COLUMNS]: kernels write them, rule sets read them.

Sizes of words are counted in halves: a spaced word is two, a letter of an unspaced script one, because most words of such scripts have two letters.
"""

(NUM_CHARS, NUM_VISIBLE, NUM_LETTERS, NUM_SYMBOLS, NUM_REPLACEMENTS, NUM_WORDS, NUM_WORD_CHARS) = range(7)
"""Visible: without white space and emoji; word characters: see rules/headrace.py."""
(NUM_LINES, NUM_DUPLICATE_LINES, NUM_LINE_BYTES, NUM_DUPLICATE_LINE_BYTES, NUM_GRAM_CHARS, TOP_GRAM_CHARS) = range(7, 13)
"""Headrace's repetition: lines with a letter or digit; characters in words, and those that the most frequent 2-gram covers."""
(NUM_EMOJI, NUM_UNSPACED, NUM_SIMPLIFIED, NUM_TRADITIONAL, BOILERPLATE_BYTES, CODE_BYTES, LOG_BYTES) = range(13, 20)
"""Emoji, letters of unspaced scripts, Chinese characters of one variety only; bytes in lines of each kind."""
(IS_UNSPACED, C4_RULE, NUM_HALVES, NUM_PLAIN_HALVES, NUM_PLAIN_CHARS, NUM_ALPHA_HALVES, NUM_STOP_WORDS, NUM_HASHES, NUM_ELLIPSES) = range(20, 29)
"""Whether unspaced script is the greater part, C4's verdict, and Gopher's words: all, not only punctuation, with a letter in them."""
(NUM_ALL_LINES, NUM_BULLET_LINES, NUM_ELLIPSIS_LINES, NUM_TEXT_LINES, NUM_ENDED_LINES, NUM_SHORT_LINES, REPEATED_LINES, REPEATED_LINE_CHARS) = range(
    29, 37
)
"""Lines as Gopher and FineWeb see them: text lines are those that are not blank."""
(NUM_PARAGRAPHS, REPEATED_PARAGRAPHS, REPEATED_PARAGRAPH_CHARS) = range(37, 40)
"""Paragraphs: parted by empty lines."""
GRAM_CHARS = 40
"""Column GRAM_CHARS + n - 2 for n-grams of n = 2 .. 10 words: of the most frequent one (n <= 4), of all repeated ones (n > 4)."""
NUM_COLUMNS = 49
