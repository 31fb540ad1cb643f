"""Measure pictures: batched on any device, no loop over pictures or pixels."""
