"""The page of a study in MLflow: its trials without their parent, sorted by value, beside their curves.

MLflow reads all of that from the address: by itself it opens its pages for language models, with one run that is to be
unfolded. The query is a tag of the experiment, for pages that know only that.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

#: The experiment's tag that holds :func:`query`. MLflow shows no tags that begin as its own do.
PAGE_TAG: Final = "mlflow.studyhall.page"


def query(metric: str, *, ascending: bool) -> str:
    """How the runs of a study are shown.

    Args:
        metric: the key in MLflow by which they are sorted. A list by time would be folded.
        ascending: whether the lowest is on top.
    """
    options = {
        "workflowType": "machine_learning",
        "compareRunsMode": "CHART",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": str(ascending).lower(),
        # The tag of runs.TRIAL_TAG, whose value in the parent is runs.WHOLE_STUDY.
        "searchFilter": 'tags.`studyhall.trial` != "study"',
    }
    return "&".join(f"{key}={quote(value, safe='')}" for key, value in options.items())


def page_of(experiment_id: str, shown: str) -> str:
    """The page of an experiment, below MLflow's address."""
    return f"#/experiments/{experiment_id}/runs?{shown}"
