"""Operators: tensors in, tensors out. They know no model and read no config."""
