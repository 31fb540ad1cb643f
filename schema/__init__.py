"""Define the records that all layers share: parameters, campaigns, prompts, runs, findings, errors."""
