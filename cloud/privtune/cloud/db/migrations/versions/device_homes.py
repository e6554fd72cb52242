"""How far the homes of devices are."""

import sqlalchemy as sa
from alembic import op

revision = "device_homes"
down_revision = "job_deletions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "homes",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("home_id", sa.String(32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("owner", "home_id", name="pk_homes"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("homes")
