"""All targets; the cases take them in turn."""

from fuzz.curation import CURATION
from fuzz.data import DATA
from fuzz.labels import LABELS
from fuzz.models import MODELS
from fuzz.store import STORE

TARGETS = [*DATA, *LABELS, *CURATION, *MODELS, *STORE]
