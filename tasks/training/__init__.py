"""Train LoRAs with kohya's parameters, in a separate process."""
