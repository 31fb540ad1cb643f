"""How well and how fast pictures are measured."""
