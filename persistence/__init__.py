"""Memory: tables, the outbox writer, the archive in S3, and queries over what is stored."""
