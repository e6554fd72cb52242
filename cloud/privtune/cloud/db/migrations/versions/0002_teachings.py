"""Teachings."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_Counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "teachings",
        sa.Column("number", _Counter, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("cancelling", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("result", sa.String(64)),
        sa.Column("card", sa.JSON(none_as_null=True)),
        sa.Column("error_code", sa.String(64)),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("finished_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("number", name="pk_teachings"),
        sa.UniqueConstraint("id", name="uq_teachings_id"),
    )
    op.create_index("ix_teachings_owner_number", "teachings", ["owner", "number"])
    op.create_index("ix_teachings_status", "teachings", ["status"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("teachings")
