"""Phases that end as they are called, in no time."""
