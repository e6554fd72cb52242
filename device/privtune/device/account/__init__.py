"""What left this device and what it cost: ledger, transcript, and their verification."""
