"""The data doctor: what is wrong with pictures and captions before a night is spent on them."""
