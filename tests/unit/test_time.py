"""Times as the Kubernetes API has them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from trainyard.time import format_micro_time, format_time, utc_now

MOMENT = datetime(2030, 1, 1, 12, 0, 0, 123_456, tzinfo=UTC)


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
def test_a_moment_is_formatted_in_utc_whatever_its_time_zone(zone: timezone) -> None:
    assert format_time(MOMENT.astimezone(zone)) == "2030-01-01T12:00:00Z"
    assert format_micro_time(MOMENT.astimezone(zone)) == "2030-01-01T12:00:00.123456Z"


def test_the_current_time_is_in_utc() -> None:
    assert utc_now().utcoffset() == timedelta(0)
