"""Jobs and uploads say which gateway has accepted them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column (empty: one that is not there any more) and a table."""
    op.add_column("jobs", sa.Column("accepted_by", sa.String(32), nullable=False, server_default=""))
    op.create_table(
        "uploads",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("accepted_by", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_uploads")),
    )


def downgrade() -> None:
    """Drop both."""
    op.drop_table("uploads")
    op.drop_column("jobs", "accepted_by")
