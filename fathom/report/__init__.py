"""The page that shows a run. Imports no torch."""
