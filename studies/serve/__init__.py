"""The sites: optuna-dashboard and MLflow, each in a process of its own, behind one guard."""
