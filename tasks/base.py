"""The interface of a task: data, batches, model, loss, metrics and pictures.

A task is a folder of tasks/ with `keys.py`, its configuration keys without torch, and `task.py`, whose `TASK` is a
subclass of `Task`. Nothing outside of tasks/ distinguishes tasks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from configs.loading import flat_config
from configs.values import AUTO
from data.loaders import EvalLoader, Interruptible, Pipeline, TrainLoader
from data.pipeline.transforms import EvalTransform, EvalTransformOptions, TrainTransform, TrainTransformOptions
from data.pipeline.workers import LoaderOptions
from data.sources.base import Source
from data.sources.names import is_imagenet
from models.registry import ModelOptions, build_for_run, model_options, preprocessing_of
from models.weights.load import load_contents
from tasks.export import Export
from utils.batches import Batch
from utils.distributed.world import World
from utils.pictures import Pictures
from utils.precision import Precision
from utils.preprocessing import Preprocessing, Size, image_size
from utils.runs.provenance import DataInfo
from utils.training.evaluate import Evaluator, evaluate
from utils.training.objective import Best, Evaluation
from utils.training.plan import RunPlan

SHOWN = 32  # samples of a training batch to draw


@dataclass(frozen=True)
class TaskData:
    """The opened splits of a dataset, None if not requested or missing, and its identity."""

    train: Source | None
    val: Source | None
    info: DataInfo

    @property
    def train_size(self) -> int:
        return 0 if self.train is None else len(self.train)


@dataclass(frozen=True)
class Row:
    """The prediction for one sample.

    `sample`: index; `cells`: columns of a table, by name; `others`: further lines of the table, such as one for each
    object; `record`: all of it for JSON, `cells` if None; `picture` draws it; `label_map` draws the class of every
    pixel as its value.
    """

    sample: int
    cells: Mapping[str, Any]
    record: Mapping[str, Any] | None = None
    picture: Any = field(default=None, repr=False)
    label_map: Any = field(default=None, repr=False)
    others: Sequence[Mapping[str, Any]] = ()


class CardText(NamedTuple):
    """What the model card of a published model says about its task.

    `tag`: the hub's name of it; `images`: how they are prepared, the rest of "Images are ..."; `example`: Python code
    that predicts, with {model} for the name of the model, empty for none.
    """

    tag: str
    images: Sequence[str]
    example: str = ""


class Task(ABC):
    """A configured task.

    Args: cfg: the frozen configuration; contents: the loaded weights file, or the metadata of an exported model; the
    preprocessing and data stored there override the configuration.
    Raises: ConfigError.
    """

    name: ClassVar[str]
    best: Best | None = None  # the metric that selects the best checkpoint, unless `best_of` reads it from a key
    predicts: ClassVar[bool] = True  # whether scripts/predict.py supports it
    entries: ClassVar[int] = 3  # of a prediction, such as the classes of an image, unless asked otherwise
    layouts: ClassVar[tuple[str, ...]] = ()  # of files with the parts beside the Swin, which are converted with them

    def __init__(self, cfg: CfgNode, world: World, contents: Mapping[str, Any] | None = None) -> None:
        self.cfg, self.world, self.contents = cfg, world, contents or {}
        self.best = self.best_of(flat_config(cfg))
        self.precision = Precision.from_config(cfg, world.device)
        self.options: ModelOptions = model_options(cfg)
        own = Preprocessing.stored(self.contents) or preprocessing_of(self.options)
        self.preprocessing = own.configured(cfg, self.options.in_chans)

    @classmethod
    def best_of(cls, config: Mapping[str, Any]) -> Best | None:
        """Returns the metric that selects the best checkpoint of a run. Args: config: flat {KEY: value}."""
        return cls.best

    @abstractmethod
    def open_data(self, splits: Sequence[str] = ("train", "val")) -> TaskData:
        """Opens splits of the dataset on every rank; a validation split is optional in training. Raises: DataError."""

    @abstractmethod
    def stored_info(self, origin: str) -> DataInfo:
        """Returns the `DataInfo` stored in the checkpoint `origin`. Raises: CheckpointError."""

    @abstractmethod
    def pipeline(self, info: DataInfo) -> Pipeline:
        """Returns the pipeline from sources to batches. Raises: ConfigError."""

    @abstractmethod
    def new_model(self, info: DataInfo | None) -> nn.Module:
        """Builds a newly initialised model. Args: info: None without data, to measure throughput."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `utils.training.objective.Objective.loss`."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Runs the model for evaluation or prediction, without gradients."""

    @abstractmethod
    def evaluator(self, val: EvalLoader, info: DataInfo) -> Evaluator:
        """Returns a new evaluator for one pass over `val`."""

    @abstractmethod
    def show_batch(self, batch: Batch, info: DataInfo, limit: int = SHOWN) -> Image.Image:
        """Draws up to `limit` samples of a training batch as the model sees them."""

    def after_update(self, model: nn.Module, done: int, planned: int) -> None:
        """See `utils.training.objective.Objective.after_update`; does nothing by default."""
        return

    def turns(self, class_names: Sequence[str] = ()) -> bool:
        """Returns whether images are turned upright by their EXIF orientation: by default all but ImageNet's, whose
        published accuracies ignore it. Args: class_names: of the images, empty if unknown."""
        if self.cfg.DATA.EXIF != AUTO:
            return self.cfg.DATA.EXIF == "apply"
        return not is_imagenet(class_names)

    def image_pipeline(self, on_device: Callable[[Any, Any], tuple[Any, Any]], info: DataInfo) -> Pipeline:
        """Returns the pipeline of the configured image transforms. Args: on_device: transform of whole batches."""
        cfg, channels = self.cfg, self.options.in_chans
        train = TrainTransformOptions.from_config(cfg, channels, info.upright)
        val = EvalTransformOptions.from_config(cfg, channels, self.preprocessing.crop_pct, info.upright)
        return Pipeline(
            train=None if cfg.EVAL_MODE else TrainTransform(train),
            val=EvalTransform(val),
            preprocessing=self.preprocessing,
            on_device=on_device,
            erase_mode=train.re_mode,
            sample_bytes=channels * train.size[0] * train.size[1],
        )

    def epoch_pictures(self, model: nn.Module, shown: EvalLoader) -> Pictures:
        """Returns functions that draw pictures for trackers after every evaluation. Called on every rank.

        Args: shown: validation samples, or training samples without validation data.
        """
        return {}

    def predictions(self, outputs: Any, batch: Batch, info: DataInfo, limit: int) -> Iterator[Row]:
        """Yields a row per sample of a batch. Args: outputs: from `forward`; limit: maximum entries per sample."""
        raise NotImplementedError

    def build_model(self, info: DataInfo | None) -> nn.Module:
        """Builds the model of a run on its device, initialised from SEED and configured by TRAIN."""
        return build_for_run(self.cfg, lambda: self.new_model(info), self.world)

    def load(self, model: nn.Module, contents: Mapping[str, Any], origin: str, info: DataInfo | None = None) -> str:
        """Copies the weights of a file into a model and returns a log line.

        Args: info: the data to fine-tune on; parts for other data are re-initialised. None: everything must fit.
        Raises: CheckpointError.
        """
        return load_contents(model, contents, origin, tables=self.cfg.MODEL.TABLE_INTERPOLATION)

    def loader(self, source: Source, info: DataInfo, **more: Any) -> EvalLoader:
        """Returns the evaluation loader of this rank's shard. Args: more: fields of `LoaderOptions`."""
        options = replace(LoaderOptions.from_config(self.cfg), **more)
        return EvalLoader(source, self.pipeline(info), options, self.world)

    def card(self, info: DataInfo) -> CardText | None:
        """Returns the texts of a model card; None if models of the task are not published."""
        return None

    @property
    def input_size(self) -> Size:
        """Height and width of the model's input in evaluation, in pixels."""
        return image_size(self.cfg.TEST.IMG_SIZE or self.cfg.DATA.IMG_SIZE)

    def export(self, model: nn.Module, batch: int) -> Export:
        """Returns a model for export. Args: batch: images per call, 0 for any number. Raises: ConfigError."""
        return Export(model, (self.options.in_chans, *self.input_size), batch)

    def describe(self) -> str:
        """Returns a log line on the preprocessing."""
        return str(self.preprocessing)


def upright_line(info: DataInfo) -> str:
    """Returns what happens to images with an EXIF orientation, as the rest of "Images are ..."."""
    return "turned upright by their EXIF orientation" if info.upright else "read as stored, whatever their EXIF"


class TrainingData:
    """The loaders of a training run, and evaluation on its validation split.

    The constructor starts the server of the loader workers, which takes seconds: create it before the model.
    Args: interruptible: see `EvalLoader`. Raises: ConfigError, ResourceError.
    """

    def __init__(self, task: Task, data: TaskData, plan: RunPlan, interruptible: Interruptible = iter):
        assert data.train is not None
        pipeline, options = task.pipeline(data.info), LoaderOptions.from_config(task.cfg)
        self.task, self.info, self._source, self._plan = task, data.info, data.train, plan
        self.predicts = task.predicts
        self.train = TrainLoader(data.train, pipeline, options, plan.shape, task.world)
        self.val = None if data.val is None else EvalLoader(data.val, pipeline, options, task.world, interruptible)
        self._shown = self.val if self.val is not None else EvalLoader(data.train, pipeline, options, task.world)

    @property
    def best(self) -> Best | None:
        """The metric that selects the best checkpoint; None without validation data."""
        return self.task.best if self.val is not None else None

    def epoch(self, epoch: int, first_update: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch, starting at an update; see `TrainLoader.epoch`."""
        return self.train.epoch(epoch, first_update, self._plan.updates_in(epoch))

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Evaluation | None:
        """Evaluates on all ranks without affecting training; None if there is nothing to evaluate.

        Args: limit: maximum batches per rank, to estimate the duration.
        """
        task, pictures = self.task, self.task.epoch_pictures(model, self._shown)
        if self.val is None:
            return Evaluation({}, "", each_epoch=pictures) if pictures else None
        batches = self.val if limit is None else islice(self.val, limit)
        evaluation = evaluate(model, batches, task.evaluator(self.val, self.info), task.forward, task.world)
        return replace(evaluation, each_epoch={**evaluation.each_epoch, **pictures})

    def show_batch(self, batch: Batch) -> Image.Image:
        """Draws a training batch as the model sees it."""
        return self.task.show_batch(batch, self.info)

    def name_of(self, index: int) -> str:
        """Returns the location of a training sample, for messages."""
        return self._source.name(index)
