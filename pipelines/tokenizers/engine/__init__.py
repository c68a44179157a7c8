"""A fast engine with the same ids as the tokenizers package, and checked against it.

fast        the gigatoken package, for the tokenizers that it knows
reference   the tokenizers package, which decides what is right
checked     both: the first does the work, the second sees to it that nothing differs
"""
