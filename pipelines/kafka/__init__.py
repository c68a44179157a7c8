"""Between Kafka and the pipeline: planning, reading, dead letters, events. Only this package imports the Kafka client."""
