"""The Triton twins of the definitions one folder up, under the same names."""
