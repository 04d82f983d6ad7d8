"""A run's numbers for programs that draw them; metrics.jsonl has them all."""
