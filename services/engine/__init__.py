"""The engine all five workers share: one thread that owns the models, requests in, events out."""
