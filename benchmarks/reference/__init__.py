"""Reference implementations: plain, op by op. The oracle of the engine and its speed baseline."""
