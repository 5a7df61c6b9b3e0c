"""A bound on how long the server works at one SELECT: what was not foreseen must not become everybody's load."""

from typing import Final

from sqlalchemy import TextClause, text

from persistence.database import Database

_TIMEOUT_S: Final = 2


def timed(query: str, database: Database) -> TextClause:
    """The SELECT, to be ended by MySQL or MariaDB after two seconds. SQLite knows no such bound: there the transaction's must do."""
    if not database.is_mysql:
        return text(query)
    # MariaDB takes MySQL's hint for a comment.
    if getattr(database.engine.dialect, "is_mariadb", False):
        return text(f"SET STATEMENT max_statement_time={_TIMEOUT_S} FOR {query}")
    return text(query.replace("SELECT", f"SELECT /*+ MAX_EXECUTION_TIME({_TIMEOUT_S * 1000}) */", 1))
