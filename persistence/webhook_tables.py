"""The table behind the webhook: what its receiver has yet to be told. Parts of `tables`, for the same databases."""

from sqlalchemy import Column, Index, Integer

from persistence.schema import UtcTime, ascii_text, long_text, make_table

# One row for each rating whose last change is not delivered; a further change takes the place of the one that waits. `due_at` is when to
# try, or to try again. No foreign key: nothing of the dialogue may wait for it.
webhook_deliveries = make_table(
    "webhook_deliveries",
    Column("feedback_id", ascii_text(64), primary_key=True),
    # Differs with each change: whoever delivered an older one sees that there is more to tell.
    Column("delivery_id", ascii_text(64), nullable=False),
    # The rating as it was stored, as the outbox writes it: the row it stands in may have changed since.
    Column("record", long_text(), nullable=False),
    Column("announced_at", UtcTime, nullable=False),
    Column("due_at", UtcTime, nullable=False),
    Column("num_tries", Integer, nullable=False),
    Index(None, "due_at"),
)
