"""Checkpoint and prompt suite to pictures."""
