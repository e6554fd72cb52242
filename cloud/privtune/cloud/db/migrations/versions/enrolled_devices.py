"""Enrolled devices, the tokens that let them in, and which of them opened a job last."""

import sqlalchemy as sa
from alembic import op

revision = "enrolled_devices"
down_revision = "audit_log"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their tables."""
    op.create_table(
        "devices",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger()),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
    )
    op.create_index("ix_devices_owner", "devices", ["owner"])
    op.create_table(
        "enrolments",
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("device_id", sa.String(40)),
        sa.Column("key_sha256", sa.String(64)),
        sa.PrimaryKeyConstraint("secret_sha256", name="pk_enrolments"),
    )
    op.create_index("ix_enrolments_owner", "enrolments", ["owner"])
    op.create_table(
        "device_jobs",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("device_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_device_jobs"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_device_jobs_job_id", ondelete="CASCADE"),
    )
    op.create_index("ix_device_jobs_device_id", "device_jobs", ["device_id"])


def downgrade() -> None:
    """Drop them."""
    for name in ("device_jobs", "enrolments", "devices"):
        op.drop_table(name)
