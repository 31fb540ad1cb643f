"""Diagnose failed runs: issues, their causes, and what to change."""
