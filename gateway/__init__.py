"""The thin HTTP application: it knows HTTP, callers and where workers are, and no model."""
