"""Draw the pictures of a prompt suite with a checkpoint."""
