"""What may be wrong with a storage or a machine, and the command that mends it. Only looks; changes nothing.

Each check returns :class:`Finding` objects and raises nothing: what is broken is what they are to tell.
"""

from __future__ import annotations

from studies.doctor.database import Examination, examine_database, failed
from studies.doctor.findings import Finding, KnownStudy
from studies.doctor.machine import examine_machine, examine_url

__all__ = ["Examination", "Finding", "KnownStudy", "examine_database", "examine_machine", "examine_url", "failed"]
