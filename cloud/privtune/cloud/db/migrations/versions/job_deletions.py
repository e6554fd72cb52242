"""Deletions of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "job_deletions"
down_revision = "owner_limits"
branch_labels = None
depends_on = None

_Counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "deletions",
        sa.Column("number", _Counter, autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("receipt", sa.JSON(none_as_null=True)),
        sa.Column("finished_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("number", name="pk_deletions"),
        sa.UniqueConstraint("job_id", name="uq_deletions_job_id"),
    )
    op.create_index("ix_deletions_owner_number", "deletions", ["owner", "number"])
    op.create_index("ix_deletions_finished_at", "deletions", ["finished_at"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("deletions")
