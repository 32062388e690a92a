"""The usage log's table through time; Alembic runs `versions/` when the gateway starts.

A new column: add it to `Record` and `Usage`, then write `versions/NNNN_*.py` after its neighbours with `upgrade` and
`downgrade`, altering inside `op.batch_alter_table`, which SQLite needs. The tests say what the migration still lacks.
"""
