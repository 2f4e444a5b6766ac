"""Finalize: choose a model fairly, retrain it, test it once, and describe it in a folder.

- ``comparison``: the best trials run again with fresh seeds, as a study of their own that any worker helps with.
- ``choice``: which of them wins, by their mean scores and sizes.
- ``final``: the winner is retrained on training and validation data, tested, and written to a folder.

An objective that can be finalized is a class with a method::

    finalize(params, *, seed, device, directory, progress) -> dict[str, float]

which trains with ``params`` on training and validation data, uses the test data once, writes its model into
``directory``, calls ``progress(done, total)`` now and then, and returns its metrics. Optional:

- a keyword ``ensemble`` of it: how many models to train with different seeds and average, for ``--ensemble``;
- a keyword ``checkpoint``: a file, perhaps there, in which it may keep the state of its training, to go on after it
  was killed; its folder may be missing;
- a method ``n_parameters(params) -> int``, by which the simpler of two equally good models is known;
- a file ``README.md`` in ``directory``: what the objective says of the model, in Markdown with headings from ``##``;
- a function ``_load_pyfunc(directory)`` of the objective's module, which returns an object with a method
  ``predict(rows)`` and an attribute ``example``, for MLflow's registry.
"""
