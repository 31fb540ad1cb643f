"""What is worth testing: proposals, their queue, paired tests, comparisons of checkpoints."""
