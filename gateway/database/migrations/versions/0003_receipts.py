"""Receipts: what workers made; the usage log says who asked for which model; a roll-up by the day."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ADDED = {"caller": 64, "owner": 128, "route": 256, "model": 200, "modality": 16}
CONTENT = ("prompt", "output")
MADE = (
    "tokens",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "pixel_steps",
    "audio_seconds",
    "frames",
    "meshes",
)


def made() -> list[sa.Column[float]]:
    """Return columns of numbers; a column is of one table."""
    return [sa.Column(name, sa.Double(), nullable=False) for name in ("queue_seconds", "run_seconds", *MADE)]


def upgrade() -> None:
    """Create two tables, and widen the log."""
    with op.batch_alter_table("usage") as table:
        for name, length in ADDED.items():
            table.add_column(sa.Column(name, sa.String(length), nullable=False, server_default=""))
        for name in CONTENT:
            table.add_column(sa.Column(name, sa.String(65_536), nullable=True))
        table.create_index(op.f("ix_usage_request_id"), ["request_id"])
        table.create_index(op.f("ix_usage_caller_started_at"), ["caller", "started_at"])
    op.create_table(
        "receipts",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("usage_id", sa.BigInteger(), nullable=True),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("iterations", sa.BigInteger(), nullable=False),
        sa.Column("ending", sa.String(16), nullable=False),
        *made(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receipts")),
    )
    op.create_index(op.f("ix_receipts_request_id"), "receipts", ["request_id"])
    op.create_index(op.f("ix_receipts_usage_id"), "receipts", ["usage_id"])
    op.create_table(
        "usage_days",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.Column("response_seconds", sa.Double(), nullable=False),
        *made(),
        sa.PrimaryKeyConstraint("day", "caller", "owner", "model", "modality", name=op.f("pk_usage_days")),
    )


def downgrade() -> None:
    """Drop the tables and the columns, with all they hold."""
    op.drop_table("usage_days")
    op.drop_table("receipts")
    with op.batch_alter_table("usage") as table:
        table.drop_index(op.f("ix_usage_caller_started_at"))
        table.drop_index(op.f("ix_usage_request_id"))
        for name in (*ADDED, *CONTENT):
            table.drop_column(name)
