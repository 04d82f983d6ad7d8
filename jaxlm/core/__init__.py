"""Floor 0: parameters, configs, batches, trees, logs, files. No model, data or mesh."""
