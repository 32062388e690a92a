"""Durable jobs: a table, conditional updates on it, and the gateways that work it off; knows no media format."""
