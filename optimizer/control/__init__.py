"""Control how a campaign proceeds: budget, stopping, fidelity, objective, confirmation."""
