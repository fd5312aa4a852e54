"""Reinforcement learning from rule-checked rewards: sampling answers, judging them, learning from the difference."""
