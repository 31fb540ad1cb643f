"""optuna-dashboard: what it shows of a campaign, and the server it runs on."""
