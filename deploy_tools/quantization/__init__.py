"""INT8 for each target: dynamic, and static Q/DQ from a range table."""
