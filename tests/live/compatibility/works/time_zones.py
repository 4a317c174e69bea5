"""Time zones, clocks that go forward, and sleeping."""

from __future__ import annotations

import datetime as dt
import os
import time
from zoneinfo import ZoneInfo

summer = dt.datetime(2024, 7, 1, 12, tzinfo=dt.UTC)
assert summer.astimezone(ZoneInfo("Europe/Berlin")).hour == 14
assert summer.astimezone(ZoneInfo("Asia/Kolkata")).minute == 30
os.environ["TZ"] = "America/New_York"
time.tzset()
assert time.localtime(summer.timestamp()).tm_hour == 8

for clock in (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME):
    before = time.clock_gettime_ns(clock)
    time.sleep(0.002)
    assert time.clock_gettime_ns(clock) - before >= 2_000_000
assert time.process_time() > 0
assert dt.datetime.now(tz=dt.UTC).year >= 2024
