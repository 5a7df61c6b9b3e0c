"""The tables, as one SQLAlchemy metadata for MySQL, MariaDB and SQLite. Revisions in `migrations` create them; nothing here does.

A row with a negative `sequence` is a stub: something named its id before its own record arrived. Its other columns are still empty.
"""

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint

# Imported so that the metadata is whole for whoever asks for it here.
from persistence import search_tables as search_tables
from persistence.schema import JsonDocument, UtcTime, ascii_text, long_text, make_table
from persistence.schema import metadata as metadata
from persistence.webhook_tables import webhook_deliveries as webhook_deliveries

STUB_SEQUENCE = -1

sessions = make_table(
    "sessions",
    Column("session_id", ascii_text(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    # Who is asking may come from a foreign identity provider: any text, of any script.
    Column("user_id", String(255)),
    Column("client_id", String(255)),
    Column("model", String(255)),
    Column("status", ascii_text(16)),
    Column("created_at", UtcTime),
    Column("updated_at", UtcTime),
    Column("ended_at", UtcTime),
    Index(None, "user_id", "created_at"),
    Index(None, "created_at"),
    Index(None, "status", "updated_at"),
)

turns = make_table(
    "turns",
    Column("turn_id", ascii_text(64), primary_key=True),
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("number", Integer),
    # Clients name their items; nothing obliges them to ASCII.
    Column("item_id", String(64)),
    Column("text", long_text()),
    Column("created_at", UtcTime),
    UniqueConstraint("session_id", "number"),
    Index(None, "session_id", "item_id"),
)

predictions = make_table(
    "predictions",
    Column("response_id", ascii_text(64), primary_key=True),
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), nullable=False),
    Column("turn_id", ascii_text(64), ForeignKey("turns.turn_id")),
    Column("sequence", BigInteger, nullable=False),
    Column("model", String(255), nullable=False),
    Column("model_version", String(255), nullable=False),
    Column("status", ascii_text(16), nullable=False),
    Column("status_reason", String(255)),
    Column("text", long_text(), nullable=False),
    # As encoded; a document that this database's JSON type refuses, being too deep, stands here as a JSON string.
    Column("output", JsonDocument, nullable=False),
    Column("request", JsonDocument, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("first_token_at", UtcTime),
    Column("done_at", UtcTime, nullable=False),
    Column("error", long_text()),
    Index(None, "session_id", "created_at"),
    Index(None, "turn_id"),
    Index(None, "created_at"),
    Index(None, "status", "created_at"),
)

# What was generated, sent and heard of an answer are three facts from three times: each has its table, so that none waits for another.
# No foreign keys to predictions: either may arrive before the prediction itself.
sent = make_table(
    "sent",
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), primary_key=True),
    Column("response_id", ascii_text(64), primary_key=True),
    # UTF-16 code units of the answer's text that were handed to a connected client. It only grows.
    Column("sent_chars", Integer, nullable=False),
    Column("sent_at", UtcTime, nullable=False),
)

heard = make_table(
    "heard",
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), primary_key=True),
    Column("response_id", ascii_text(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("item_id", String(64), nullable=False),
    Column("heard_text", long_text(), nullable=False),
    Column("heard_chars", Integer, nullable=False),
    Column("heard_at", UtcTime, nullable=False),
)

# The latest opinion of each person on each answer; `rating` is NULL once it is withdrawn.
feedback = make_table(
    "feedback",
    Column("feedback_id", ascii_text(64), primary_key=True),
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), nullable=False),
    Column("item_id", String(64), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("role", ascii_text(16), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("rating", ascii_text(8)),
    Column("reason", String(64)),
    Column("comment", Text),
    # UTF-16 code units of the item's text.
    Column("start_chars", Integer),
    Column("end_chars", Integer),
    Column("rated_at", UtcTime, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    UniqueConstraint("session_id", "item_id", "user_id"),
    Index(None, "rated_at", "feedback_id"),
    Index(None, "rating", "rated_at", "feedback_id"),
    Index(None, "user_id", "rated_at"),
)

# Which answer said what is rated. A rating may come before its answer is finished, and so before this row.
answer_items = make_table(
    "answer_items",
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), primary_key=True),
    Column("item_id", String(64), primary_key=True),
    Column("response_id", ascii_text(64), nullable=False),
)

# How an answer came to be: apart from it, because a prompt is as long as its whole dialogue.
traces = make_table(
    "traces",
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), primary_key=True),
    Column("response_id", ascii_text(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("prompt", long_text()),
    Column("prompt_format", ascii_text(16), nullable=False),
    # A JSON string where this database refuses the document.
    Column("sampling", JsonDocument, nullable=False),
    Column("queued_at", UtcTime),
    Column("engine_first_token_at", UtcTime),
    Column("last_token_at", UtcTime),
    Column("prompt_version", String(255)),
    Column("persona", String(255), nullable=False),
)

notes = make_table(
    "notes",
    Column("note_id", ascii_text(64), primary_key=True),
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), nullable=False),
    Column("author_id", String(255), nullable=False),
    Column("text", long_text(), nullable=False),
    Column("position_ms", BigInteger),
    Column("created_at", UtcTime, nullable=False),
    Index(None, "session_id", "created_at"),
)

# Append-only: `number` has no holes, and each row's `hash` covers it and the hash before it. No foreign key: a look at something that
# turns out not to be there is told of too.
audit_logs = make_table(
    "audit_logs",
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("audit_id", ascii_text(64), nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("actor_id", String(255), nullable=False),
    Column("role", ascii_text(16), nullable=False),
    Column("client_id", String(255), nullable=False),
    Column("action", String(64), nullable=False),
    Column("session_id", String(64)),
    # Text, not JSON: MySQL would write the document anew, and its hash would be another.
    Column("detail", long_text(), nullable=False),
    Column("previous_hash", ascii_text(64), nullable=False),
    Column("hash", ascii_text(64), nullable=False),
    UniqueConstraint("audit_id"),
    Index(None, "actor_id", "number"),
    Index(None, "session_id", "number"),
    Index(None, "action", "number"),
)

# One row, numbered 1: the last row of `audit_logs`. Whoever appends holds its lock, and a log that was cut short betrays itself by it.
audit_head = make_table(
    "audit_head",
    Column("head_id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("hash", ascii_text(64), nullable=False),
)

requests = make_table(
    "requests",
    Column("request_id", ascii_text(64), primary_key=True),
    Column("user_id", String(255)),
    # No foreign key: a log also tells of calls for sessions that never were.
    Column("session_id", String(64)),
    Column("method", String(16), nullable=False),
    Column("path", String(1024), nullable=False),
    Column("status", Integer, nullable=False),
    Column("duration_ms", Double, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Index(None, "created_at"),
    Index(None, "user_id", "created_at"),
    Index(None, "session_id", "created_at"),
)

# One row for each archived part of a journal. The row is made before its object, to settle where the part ends; with `stored_at` set
# the object is known to be in the archive, and only the commit of that allows the journal to be trimmed.
archives = make_table(
    "archives",
    Column("session_id", ascii_text(64), ForeignKey("sessions.session_id"), primary_key=True),
    Column("first_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("object_key", ascii_text(255), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("num_events", Integer, nullable=False),
    Column("num_bytes", BigInteger),
    Column("sha256", ascii_text(64)),
    Column("stored_at", UtcTime),
    UniqueConstraint("object_key"),
)
