"""The soak: documents at changing rates into a followed stream whose processes are killed at random, and the accounts at the end."""
