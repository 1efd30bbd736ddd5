"""One file per rule that turns a supernet into a genotype."""
