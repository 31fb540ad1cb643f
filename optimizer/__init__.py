"""Make decisions: history in, decision out. No torch, no Prefect, no network, no clock."""
