"""The outside world: GPU, files, database, pictures."""
