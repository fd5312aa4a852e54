"""Checkpoints: published ones both ways, and those a run resumes from."""
