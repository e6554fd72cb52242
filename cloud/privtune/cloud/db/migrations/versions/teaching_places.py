"""Which cloud works on a teaching."""

import sqlalchemy as sa
from alembic import op

revision = "teaching_places"
down_revision = "enrolled_devices"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add its name; one that runs meanwhile is nobody's, and any cloud that starts takes it up again."""
    op.add_column("teachings", sa.Column("place", sa.String(32)))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("teachings", "place")
