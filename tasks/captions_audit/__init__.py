"""Check the pictures and captions of a data set before a training run is spent on them."""
