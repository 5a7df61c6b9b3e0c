"""Whole installations under test. What the tests share asserts, too, and says as much when it fails."""

import pytest

pytest.register_assert_rewrite("tests.end_to_end.client", "tests.end_to_end.stored")
