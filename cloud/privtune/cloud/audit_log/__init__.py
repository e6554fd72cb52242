"""The audit log: who did what to this cloud, when and from where; in the database, with no secret and no text."""
