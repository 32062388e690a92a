"""Jobs: what is to be made, what became of it, and which gateways live."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Instant = sa.DateTime(timezone=True)
Serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create three tables."""
    op.create_table(
        "jobs",
        sa.Column("seq", Serial, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("turn", sa.String(64), nullable=False),
        sa.Column("places", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("route", sa.String(256), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("steps", sa.JSON(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("executor", sa.String(32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("breaks", sa.Integer(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("not_before", Instant, nullable=False),
        sa.Column("started_at", Instant, nullable=True),
        sa.Column("completed_at", Instant, nullable=True),
        sa.Column("expires_at", Instant, nullable=True),
        sa.Column("is_deleted", sa.Boolean(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("queue_seconds", sa.Double(), nullable=False),
        sa.Column("run_seconds", sa.Double(), nullable=False),
        sa.Column("usage", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("idempotency", sa.String(64), nullable=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("hook_url", sa.String(2000), nullable=True),
        sa.Column("hook_at", Instant, nullable=True),
        sa.Column("hook_tries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_jobs")),
        sa.UniqueConstraint("id", name=op.f("uq_jobs_id")),
        sa.UniqueConstraint("idempotency", name=op.f("uq_jobs_idempotency")),
    )
    op.create_index(op.f("ix_jobs_request_id"), "jobs", ["request_id"])
    op.create_index(op.f("ix_jobs_expires_at"), "jobs", ["expires_at"])
    op.create_index(op.f("ix_jobs_hook_at"), "jobs", ["hook_at"])
    op.create_index(op.f("ix_jobs_executor_state_task_turn"), "jobs", ["executor", "state", "task", "turn"])
    op.create_index(op.f("ix_jobs_caller_seq"), "jobs", ["caller", "seq"])
    op.create_table(
        "job_events",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("job_seq", Serial, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
        sa.ForeignKeyConstraint(["job_seq"], ["jobs.seq"], name=op.f("fk_job_events_job_seq_jobs"), ondelete="CASCADE"),
    )
    op.create_index(op.f("ix_job_events_job_seq"), "job_events", ["job_seq"])
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("beats", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateways")),
    )


def downgrade() -> None:
    """Drop them, with all they hold."""
    op.drop_table("gateways")
    op.drop_table("job_events")
    op.drop_table("jobs")
