"""What the ledger costs: reading it all (`verify`), closing a large window, knowing a large day."""
