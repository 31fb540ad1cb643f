"""Keeps runs, epochs and findings."""
