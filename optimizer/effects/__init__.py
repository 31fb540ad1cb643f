"""Find the parameters that matter, and the rules that good runs follow."""
