"""Ratings: one id for one user's opinion of one answer."""

import re

from sessions.feedback import feedback_id


def test_the_same_rating_has_the_same_id_wherever_it_is_made() -> None:
    assert feedback_id("sess_1", "item_é", "한나") == feedback_id("sess_1", "item_é", "한나")
    assert re.fullmatch("fb_[a-z2-7]{26}", feedback_id("sess_1", "item_é", "한나"))


def test_another_user_answer_or_session_has_another_id() -> None:
    ids = {
        feedback_id("sess_1", "item_1", "anna"),
        feedback_id("sess_1", "item_1", "ben"),
        feedback_id("sess_1", "item_2", "anna"),
        feedback_id("sess_2", "item_1", "anna"),
        feedback_id("sess_1", "item_", "1anna"),
    }

    assert len(ids) == 5
