"""A document that breaks a step, or its process, is found and set aside alone."""
