"""What users run, one module a use: composition of the other rooms."""
