"""The command line: parses, calls one operation, renders, maps errors to exit codes."""
