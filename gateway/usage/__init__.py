"""The usage log: one row a request, written in batches behind the requests' backs, read newest first."""
