"""Who may do what: API keys with scopes, and devices with certificates."""

from privtune.cloud.auth.api_keys import ApiKeys, bearer
from privtune.cloud.auth.devices import Devices

__all__ = ["ApiKeys", "Devices", "bearer"]
