"""Choose what to run next, and whether to run it: space, study, surrogate, gate."""
