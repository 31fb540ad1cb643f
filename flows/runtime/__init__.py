"""What flows run on: services, processes, Prefect's server, retries, messages."""
