"""Why a run failed: issues, their causes, and what to change."""
