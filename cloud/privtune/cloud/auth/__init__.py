"""Who may do what: API keys with scopes."""

from privtune.cloud.auth.api_keys import ApiKeys, bearer

__all__ = ["ApiKeys", "bearer"]
