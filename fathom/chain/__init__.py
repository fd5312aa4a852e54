"""Stages of a run in order, each resumable, skipped when its inputs are unchanged, and booked in the ledger."""
