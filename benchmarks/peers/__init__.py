"""Other tools on the same work, one file each."""
