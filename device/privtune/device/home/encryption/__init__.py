"""An encrypted home. Needs the extra keyring: nothing else imports it but at its first use."""
