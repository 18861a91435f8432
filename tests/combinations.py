"""Few combinations of choices in which every pair of choices occurs."""

from itertools import combinations, product


def pairwise(choices, possible=lambda chosen: True):
    """Picks combinations until every possible pair of values is in one; always the same ones.

    Args:
        choices: the values of each choice, by its name.
        possible: whether a combination, a dict, may be.
    """
    names = list(choices)
    every = [dict(zip(names, values, strict=True)) for values in product(*choices.values())]
    every = [chosen for chosen in every if possible(chosen)]
    pairs_in = [
        {(a, chosen[a], b, chosen[b]) for a, b in combinations(names, 2)} for chosen in every
    ]
    missing = set().union(*pairs_in)
    picked = []
    while missing:
        best = max(range(len(every)), key=lambda i: len(pairs_in[i] & missing))
        missing -= pairs_in[best]
        picked.append(every[best])
    return picked, every
