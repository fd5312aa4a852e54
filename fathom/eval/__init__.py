"""Evaluation: held-out problems, scores and how far each can be trusted."""
