"""Work spread over processes; one process is a world of one and runs the same code."""
