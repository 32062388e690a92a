"""Tiny seeded checkpoints of the real architectures: right in every shape and file, meaningless in what they say."""
