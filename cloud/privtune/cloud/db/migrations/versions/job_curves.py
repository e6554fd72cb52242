"""The progress of jobs over their steps."""

import sqlalchemy as sa
from alembic import op

revision = "job_curves"
down_revision = "teaching_places"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table; a job that has ended before has no curve."""
    op.create_table(
        "job_curves",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("points", sa.JSON(), nullable=False),
        sa.Column("said", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_curves"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_curves_job_id", ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("job_curves")
