"""Scopes, expiry and rotation of API keys."""

import sqlalchemy as sa
from alembic import op

revision = "key_scopes"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keys from before may do what they could."""
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("scopes", sa.String(64), nullable=False, server_default="read submit device"))
        table.add_column(sa.Column("expires_at", sa.BigInteger()))
        table.add_column(sa.Column("replaced_by", sa.String(40)))
    with op.batch_alter_table("api_keys") as table:
        table.alter_column("scopes", server_default=None)


def downgrade() -> None:
    """Drop them. A key that may do less would become one that may do everything, so such keys are revoked first."""
    keys = sa.table("api_keys", *map(sa.column, ("scopes", "expires_at", "created_at", "revoked_at")))
    narrow = (keys.c.scopes != "read submit device") | keys.c.expires_at.is_not(None)
    op.execute(keys.update().where(narrow, keys.c.revoked_at.is_(None)).values(revoked_at=keys.c.created_at))
    with op.batch_alter_table("api_keys") as table:
        for column in ("replaced_by", "expires_at", "scopes"):
            table.drop_column(column)
