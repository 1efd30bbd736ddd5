"""Studies that are broken on purpose."""
