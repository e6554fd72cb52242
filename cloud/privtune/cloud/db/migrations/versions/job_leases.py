"""Which device holds a job."""

import sqlalchemy as sa
from alembic import op

revision = "job_leases"
down_revision = "teaching_sources"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table; a job that runs meanwhile has none, and its device opens it again."""
    op.create_table(
        "leases",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("holder", sa.String(32), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_leases"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_leases_job_id", ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("leases")
