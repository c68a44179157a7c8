"""The embedded broker: one process that speaks the Kafka protocol, for laptops and tests. Production is Apache Kafka or compatible."""
