"""Training: one step serves pretraining, supervised fine-tuning and reinforcement learning."""
