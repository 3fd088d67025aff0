"""The one door to Great Expectations: a suite per table."""
