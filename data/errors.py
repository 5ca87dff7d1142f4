"""What is wrong with the data, and where."""


class DataError(Exception):
    """Missing folders, classes that do not fit, images that cannot be read: what, which file, what to do."""

    exit_code = 3
