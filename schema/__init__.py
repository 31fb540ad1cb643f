"""The words of the system: parameters, campaigns, prompts, runs, findings, errors."""
