"""What finished runs found: their records, tables and figures. Nothing here trains."""
