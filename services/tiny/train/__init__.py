"""Recipes that train the tiny checkpoints on what this package makes up itself."""
