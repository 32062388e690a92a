"""Jobs say which gateway has accepted them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; empty: one that is not there any more."""
    op.add_column("jobs", sa.Column("accepted_by", sa.String(32), nullable=False, server_default=""))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("jobs", "accepted_by")
