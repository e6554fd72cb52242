"""Limits of single owners."""

import sqlalchemy as sa
from alembic import op

revision = "owner_limits"
down_revision = "key_scopes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "owners",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_owners"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("owners")
