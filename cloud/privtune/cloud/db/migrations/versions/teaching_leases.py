"""When the cloud that works on a teaching was last heard of."""

import sqlalchemy as sa
from alembic import op

revision = "teaching_leases"
down_revision = "job_curves"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; of what runs nothing is known, and its own cloud takes it up at its start."""
    op.add_column("teachings", sa.Column("seen_at", sa.BigInteger))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("teachings", "seen_at")
