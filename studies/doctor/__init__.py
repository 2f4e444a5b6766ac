"""Checks of a storage and a machine, each with the command that fixes the problem. They change nothing.

Each check returns :class:`Finding` objects and raises nothing: an error is a finding.
"""

from __future__ import annotations

from studies.doctor.database import Examination, examine_database, failed
from studies.doctor.findings import Finding, KnownStudy
from studies.doctor.machine import examine_machine, examine_url

__all__ = ["Examination", "Finding", "KnownStudy", "examine_database", "examine_machine", "examine_url", "failed"]
