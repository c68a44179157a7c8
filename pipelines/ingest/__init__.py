"""From Kafka offsets to dataset versions: ``stream`` orders the steps plan, run, commit; everything else here is one of them."""
