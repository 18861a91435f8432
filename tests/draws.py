"""How many random inputs a test takes: the same few at every run, or with --soak many others."""

rounds = 0  # set by conftest.py, from --soak


def examples(count, **options):
    """Settings for `count` examples, or `--soak` times as many.

    Not through a profile of Hypothesis's: importing torch's own test tools loads one of theirs.
    """
    from hypothesis import HealthCheck, settings  # every test imports this module, few need that

    return settings(
        max_examples=count * max(1, rounds), derandomize=not rounds, deadline=None, database=None,
        print_blob=True, suppress_health_check=list(HealthCheck), **options,
    )  # fmt: skip
