"""Chat models as an operator's data: kept in SQL, read by the worker, shown and changed by the command line."""
