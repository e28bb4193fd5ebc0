"""What can go wrong with the fleet's database and its commands."""

from device_profiles.errors import EdgeError


class FleetError(EdgeError):
    """The fleet cannot do what was asked."""


class StoreError(FleetError):
    """The database cannot be opened, or is of another version."""


class UnknownError(FleetError):
    """No such device, group, version, rollout or job."""


class ConflictError(FleetError):
    """Something of this name is there already with other content, or is in another state."""


class SelectorError(FleetError):
    """A label selector that cannot be read."""


class AuditError(FleetError):
    """The audit log was changed after it was written."""
