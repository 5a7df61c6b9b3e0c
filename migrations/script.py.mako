"""${message}

Revises: ${down_revision or "nothing"}

One operation a revision: MySQL commits each by itself, so that a revision that fails halfway could never run again.
The previous release must still work with this schema: add first, remove a release later. On SQLite alter in batch mode.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """${message}."""
    ${upgrades if upgrades else "pass"}
