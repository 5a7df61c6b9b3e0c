"""Tokens: one protocol, `generate` and `abort`, and the engines behind it."""
