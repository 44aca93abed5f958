"""Pruning in the trainers of other libraries, one file a library; each is imported where it is used.

Examples:
    >>> from topiarist.integrations.lightning import PruningCallback  # doctest: +SKIP
    >>> trainer = Trainer(callbacks=[PruningCallback("l1", 0.5, at=[2, 4], example_inputs=images)])  # doctest: +SKIP
"""
