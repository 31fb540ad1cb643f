"""Measure pictures in batches on any device, without a loop over pictures or pixels."""
