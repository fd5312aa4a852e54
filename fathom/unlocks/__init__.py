"""Claims of the DeepSeek reports as experiments: what is claimed, the printed figure, what is measured here."""
