"""The workers: one BentoML service a modality, and what they share. Knows nothing of the gateway."""
