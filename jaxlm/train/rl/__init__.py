"""Reinforcement learning: rollouts, rewards, and batches made of them."""
