"""Numbers, tables and figures of studies: comparisons, sensitivity. Pure functions on data frames.

`frame.study_frame` is the one place that reads a study; nothing here reads MLflow or an image.
"""
