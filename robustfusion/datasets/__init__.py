"""Data sets of image-text posts: readers, splits, reports, features computed once."""

from robustfusion.datasets.cache import FeatureCache, module_fingerprint
from robustfusion.datasets.duplicates import normalize_text
from robustfusion.datasets.encoding import Encoding, encode
from robustfusion.datasets.mvsa import MVSA
from robustfusion.datasets.pictures import BadFileError
from robustfusion.datasets.post_dataset import PostDataset
from robustfusion.datasets.post_row import PostRow, Sample
from robustfusion.datasets.post_table import PostTable
from robustfusion.datasets.reading import read_image
from robustfusion.datasets.report import DatasetReport, Duplicates, Problem
from robustfusion.datasets.splits import Splits, load_splits, stratified_split
from robustfusion.datasets.table_columns import TableColumns
from robustfusion.datasets.tumemo import TumEmo

__all__ = [
    "MVSA",
    "BadFileError",
    "DatasetReport",
    "Duplicates",
    "Encoding",
    "FeatureCache",
    "PostDataset",
    "PostRow",
    "PostTable",
    "Problem",
    "Sample",
    "Splits",
    "TableColumns",
    "TumEmo",
    "encode",
    "load_splits",
    "module_fingerprint",
    "normalize_text",
    "read_image",
    "stratified_split",
]
