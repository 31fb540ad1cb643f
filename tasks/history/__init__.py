"""Runs of earlier days, read from what they left behind."""
