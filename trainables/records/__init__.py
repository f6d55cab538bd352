"""What trials leave on disk: the schema of every record, and the ledger that keeps a sweep's."""
