"""Back up a home into one file, and restore it: rows, files, settings."""
