"""What an HTTP status means: whether to ask again, whether it may have been paid for, and what is kept of it."""

import pytest

from humor_env.llm.clients.failed_calls import from_status, lasting_kind


@pytest.mark.parametrize(
    ("status", "kind", "billed_unknown", "trouble"),
    [
        (400, "rejected", False, None),
        (401, "rejected", False, None),
        (407, "rejected", False, None),
        (408, "overloaded", True, "timeout"),
        (409, "overloaded", False, None),
        (410, "rejected", False, None),
        (429, "overloaded", False, None),
        (430, "rejected", False, None),
        (499, "rejected", False, None),
        (500, "overloaded", False, None),
        (501, "overloaded", False, None),
        (502, "overloaded", True, None),  # a gateway does not say what happened behind it
        (503, "overloaded", False, None),
        (504, "overloaded", True, "timeout"),
        (505, "overloaded", False, None),
    ],
)
def test_what_a_status_means(status, kind, billed_unknown, trouble):
    failure = from_status("some service", status, "x" * 400, retry_after="7")
    assert (failure.kind, failure.billed_unknown, failure.trouble) == (kind, billed_unknown, trouble)
    assert (failure.status, failure.retry_after) == (status, 7.0)
    assert str(failure).endswith(
        f"some service answered {status}: " + "x" * (300 - len(f"some service answered {status}: "))
    )


@pytest.mark.parametrize(
    ("status", "kept"), [(400, "rejected"), (302, "unreachable"), (404, "unreachable"), (429, "overloaded")]
)
def test_a_rejection_that_is_not_about_the_request_is_asked_again(status, kept):
    assert lasting_kind(from_status("s", status, "m")) == kept
