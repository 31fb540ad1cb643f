"""Composition and doors: Prefect flows, the command line, the wiring."""
