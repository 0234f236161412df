"""A relay that breaks connections in chosen places: `python -m tests.chaos --help`, `running.Relay` from a test."""
