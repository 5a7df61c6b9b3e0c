"""Alembic revisions. Each works with the previous release still running."""
