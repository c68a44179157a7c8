"""What a person operates Headrace with: the command line, the embedded broker, deployment."""
