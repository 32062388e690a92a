"""Budgets: reserved when a generation begins, settled by what was really made."""
