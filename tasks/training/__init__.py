"""A LoRA trainer in kohya's vocabulary, run as a process of its own."""
