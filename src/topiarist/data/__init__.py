"""Image data sets that fit in memory: scikit-learn's digits, npz files, image folders and torchvision's sets.

Images are held as they come (uint8 stays uint8) and normalised batch by batch; augmentation works on whole batches.
"""

from topiarist.data.dataset import Data, Split, augment
from topiarist.data.load import DATA_FORMS, load_data

__all__ = ["DATA_FORMS", "Data", "Split", "augment", "load_data"]
