"""Suggestion: the closest of the known names, or nothing."""

from ecospa_fx.suggestion import did_you_mean


def test_the_closest_name_is_offered() -> None:
    assert did_you_mean("ff", ["qk", "ffn", "vo"]) == "; did you mean 'ffn'?"


def test_nothing_close_offers_nothing() -> None:
    assert did_you_mean("banana", ["qk", "ffn", "vo"]) == ""
    assert did_you_mean("qk", []) == ""
