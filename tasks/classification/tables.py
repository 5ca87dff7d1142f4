"""Tables of an evaluation: accuracy per class, and the most confident mistakes."""

from collections.abc import Sequence

from data.sources.base import Source
from tasks.classification.class_names import in_words
from tasks.classification.predictions import Predictions
from tasks.classification.scores import per_class_scores
from utils.training.objective import Table

WORST = 24  # mistakes in the table and the picture


def per_class_table(predictions: Predictions, class_names: Sequence[str]) -> Table:
    """Returns a row per class with samples: name, samples, correct, top-1 (its recall), precision, F1, most frequent
    mistake; synsets as words."""
    words, rows = in_words(class_names), []
    scores = per_class_scores(predictions, len(class_names))
    named = words != tuple(class_names)
    for score in predictions.per_class(len(class_names)):
        other = "" if score.mistaken_for is None else class_names[score.mistaken_for]
        more = [f"{each[score.label]:.2f}" for each in (scores.precision, scores.f1)]
        rows.append([class_names[score.label], score.samples, score.correct, f"{score.top1:.2f}", *more, other])
        rows[-1] += [words[score.label]] if named else []
    head = ["class", "samples", "correct", "top1", "precision", "f1", "mostly_mistaken_for"]
    return Table([*head, *(["words"] if named else [])], rows)


def mistakes_table(predictions: Predictions, class_names: Sequence[str], source: Source) -> Table:
    """Returns the most confident wrong predictions: file, predicted class, its probability, true class."""
    words, rows = in_words(class_names), []
    for entry in predictions.worst(WORST):
        predicted, label = words[int(predictions.predicted[entry])], words[int(predictions.labels[entry])]
        name = source.name(int(predictions.samples[entry]))
        rows.append([name, predicted, f"{float(predictions.confidence[entry]):.3f}", label])
    return Table(["image", "predicted", "probability", "true class"], rows)
