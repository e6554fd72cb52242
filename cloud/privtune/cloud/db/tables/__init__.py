"""The tables, a file for each subject. Imported together, so that the metadata are whole."""

from privtune.cloud.db.tables.audit_tables import AuditEndRow, AuditRow
from privtune.cloud.db.tables.device_tables import DeviceJobRow, DeviceRow, EnrolmentRow
from privtune.cloud.db.tables.job_tables import (
    CheckpointRow,
    CurveRow,
    DeletionRow,
    EventRow,
    IdempotencyRow,
    JobRow,
    LeaseRow,
)
from privtune.cloud.db.tables.owner_tables import ApiKeyRow, HomeRow, OwnerRow
from privtune.cloud.db.tables.table_base import Base
from privtune.cloud.db.tables.teaching_tables import TeachingRow

__all__ = [
    "ApiKeyRow",
    "AuditEndRow",
    "AuditRow",
    "Base",
    "CheckpointRow",
    "CurveRow",
    "DeletionRow",
    "DeviceJobRow",
    "DeviceRow",
    "EnrolmentRow",
    "EventRow",
    "HomeRow",
    "IdempotencyRow",
    "JobRow",
    "LeaseRow",
    "OwnerRow",
    "TeachingRow",
]
