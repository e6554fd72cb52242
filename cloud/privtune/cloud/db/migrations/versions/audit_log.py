"""The audit log."""

import sqlalchemy as sa
from alembic import op

revision = "audit_log"
down_revision = "job_leases"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make its table, and its ends, where nothing is yet."""
    op.create_table(
        "audit_log",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.String(64), nullable=False),
        sa.Column("origin", sa.String(128), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("target", sa.String(128), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"])
    op.create_index("ix_audit_log_target", "audit_log", ["target"])
    op.create_index("ix_audit_log_owner_number", "audit_log", ["owner", "number"])
    ends = op.create_table(
        "audit_ends",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_ends"),
    )
    op.bulk_insert(ends, [{"id": which, "number": 0, "sha256": ""} for which in (0, 1)])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("audit_ends")
    op.drop_table("audit_log")
