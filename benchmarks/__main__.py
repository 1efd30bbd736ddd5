"""Run every measurement, one after the other: `make bench`."""

from __future__ import annotations

from benchmarks import input_pipeline, supernet

if __name__ == "__main__":
    supernet.main()
    print()
    input_pipeline.main()
