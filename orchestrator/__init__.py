"""Many trials: configuration, Ray Tune, ledger, MLflow, reports, the `nas` command."""
