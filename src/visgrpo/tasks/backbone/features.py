"""`visgrpo features`: a backbone's features of labelled images, in a file for other programs."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from visgrpo.errors import UserError
from visgrpo.files import write_whole
from visgrpo.tasks.backbone.use import Encoder
from visgrpo.tasks.use import rows_of
from visgrpo.tasks.use_options import EvaluateConfig, FeaturesConfig
from visgrpo.terminal import show
from visgrpo.training.processes import Processes


def write_features(config: FeaturesConfig) -> np.ndarray:
    """Write and return features (M, D), float32; with them go labels and the names of classes.

    Raises:
        UserError: for a model or data that cannot be used, and a file that is there already.
    """
    config.check()
    path = Path(config.output)
    if path.exists():
        raise UserError(f"{path} is there already: remove it, or give another --output.")
    shared = ("model", "data", "split", "image_column", "label_column", "skip_bad_images")
    rows = rows_of(EvaluateConfig(**{name: getattr(config, name) for name in shared}))
    encoder = Encoder(config.model, config.pool, config.batch_size, Processes(config.device))
    features_MD = encoder.features(rows).numpy()
    labels_M, classes = np.asarray(rows.labels, dtype=np.int64), np.asarray(rows.classes)
    content = BytesIO()
    if path.suffix == ".npz":
        np.savez(content, features=features_MD, labels=labels_M, classes=classes)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        width = features_MD.shape[1]
        columns = {
            "features": pa.FixedSizeListArray.from_arrays(pa.array(features_MD.ravel()), width),
            "label": pa.array(labels_M),
            "class": pa.array(classes[labels_M].tolist()),
        }
        parquet.write_table(pa.table(columns), content)
    write_whole(path, content.getvalue())
    show(f"{path}: {len(rows)} images of {rows.name}, {features_MD.shape[1]} features each.")
    return features_MD
