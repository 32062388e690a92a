"""The usage log: one row a request."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "usage",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("endpoint", sa.String(2048), nullable=False),
        sa.Column("client_address", sa.String(64), nullable=False),
        sa.Column("response_seconds", sa.Double(), nullable=False),
        sa.Column("first_byte_seconds", sa.Double(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.Column("ending", sa.String(16), nullable=False),
        sa.Column("successful", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage")),
    )
    op.create_index(op.f("ix_usage_started_at"), "usage", ["started_at"])


def downgrade() -> None:
    """Drop the table and all it holds."""
    op.drop_index(op.f("ix_usage_started_at"), table_name="usage")
    op.drop_table("usage")
