"""Contracts: everything that crosses a process or a file boundary. No I/O, no Ray, no Kafka client."""
