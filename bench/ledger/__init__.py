"""What reading the ledger costs: `verify` at the levels manifest and bytes."""
