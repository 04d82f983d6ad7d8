"""Tiny models of every family, one file a family, named as in jaxlm/models.

    CASES  {case: Config}: the family at the tests' sizes; the name begins with the family's
    VOID   {case: (endings of paths, ...)}: weights whose gradient is 0 by nature
    UNREAD {case: {path: rows}}: rows of a table that no input reads, where there are such

Sizes: V, T, L of `tests.families.sizes`; dimensions that a mesh of 2 x 2 x 2 cuts are even.
"""
