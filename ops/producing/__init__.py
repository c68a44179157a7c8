"""Documents from files, standard input and this machine's own documentation, published as CloudEvents."""
