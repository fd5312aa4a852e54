"""Paper arithmetic on a config. Imports no torch."""
