"""Configs and batches of every objective, for the laws in test_objective_laws.py: one file each."""
