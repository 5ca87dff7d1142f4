"""Models that cannot be built, weights that do not fit."""


class ModelError(ValueError):
    """Arguments of a model that do not fit together: which, and what would."""

    exit_code = 2


class WeightsError(ValueError):
    """Weights that are not those of the model: which names, and what to do."""

    exit_code = 4
