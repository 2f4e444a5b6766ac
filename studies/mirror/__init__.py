"""The mirror: a study in MLflow.

Workers never talk to MLflow. A process of its own reads the study and writes it to MLflow: a run for the
study, and under it one for each trial. It keeps nothing of its own: what it has written, it finds in MLflow
itself, so it can be killed, started twice, or start years later, and the runs come out the same.
"""
