"""Where a document went, and where a dataset came from: our own answer, OpenLineage events, a Croissant card."""
