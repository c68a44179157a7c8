"""From raw documents to token shards: pure functions on Arrow batches, the one Ray Data job, and the dataset it commits to."""
