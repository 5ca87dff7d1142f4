"""Programs of several ranks, each started once by a test of tests/utils."""
