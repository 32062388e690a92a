"""What holds for all tests."""

from hypothesis import settings

# An example may take its time: the machines that run the tests are small and shared.
settings.register_profile("atelier", deadline=None)
settings.load_profile("atelier")
