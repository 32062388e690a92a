"""Keys say what the usage log keeps of their content."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; null: what the log keeps of everybody's."""
    op.add_column("keys", sa.Column("log_content", sa.String(8), nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("keys", "log_content")
