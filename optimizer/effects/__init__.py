"""Which parameters matter, and which rules good runs keep."""
