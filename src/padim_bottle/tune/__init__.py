"""Choosing a configuration without a defect: synthetic anomalies in held-out training photos."""
