"""One file per rule that ends a search before its last epoch."""
