"""Reservations say which attempt they are kept for, and may have ids as long as the usage log's."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; 0: any attempt."""
    with op.batch_alter_table("reservations") as table:
        table.add_column(sa.Column("awaits", sa.Integer(), nullable=False, server_default="0"))
        table.alter_column("request_id", type_=sa.String(128), existing_nullable=False)


def downgrade() -> None:
    """Drop it; an id that is too long goes, as its column could not hold it."""
    op.execute(sa.text("DELETE FROM reservations WHERE length(request_id) > 64"))
    with op.batch_alter_table("reservations") as table:
        table.alter_column("request_id", type_=sa.String(64), existing_nullable=False)
        table.drop_column("awaits")
