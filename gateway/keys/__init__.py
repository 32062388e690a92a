"""API keys: who may call, kept as hashes, known for a short time without asking the database."""
