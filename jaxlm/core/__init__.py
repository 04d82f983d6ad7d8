"""Floor 0: parameters, configs, batches, trees, logs, files. Knows no model, data or mesh."""
