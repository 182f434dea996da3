"""What frozen features are worth: extraction, probes, metrics, and features as Parquet."""
