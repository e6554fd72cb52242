"""Alembic migrations, inside the package so that wheels carry them."""
