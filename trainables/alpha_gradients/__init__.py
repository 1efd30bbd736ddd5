"""One file per way to compute the alpha gradient; the mathematics is in `trainables.implicit`."""
