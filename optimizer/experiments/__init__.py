"""Choose and judge experiments: proposals, their queue, paired tests, comparisons of checkpoints."""
