"""What a teaching was made from."""

import sqlalchemy as sa
from alembic import op

revision = "teaching_sources"
down_revision = "device_homes"
branch_labels = None
depends_on = None

_COLUMNS = ("model_files", "corpus_files")


def upgrade() -> None:
    """Add the names of its files; what was taught before counts as taught from others."""
    for name in _COLUMNS:
        op.add_column("teachings", sa.Column(name, sa.String(64)))


def downgrade() -> None:
    """Drop them."""
    for name in _COLUMNS:
        op.drop_column("teachings", name)
