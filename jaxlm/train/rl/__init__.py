"""Reinforcement learning: rollouts, rewards, and the batches built from them."""
