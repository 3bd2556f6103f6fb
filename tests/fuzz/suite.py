"""All targets; the cases take them in turn."""

from fuzz.curation import CURATION
from fuzz.data import DATA
from fuzz.models import MODELS
from fuzz.store import STORE

TARGETS = [*DATA, *CURATION, *MODELS, *STORE]
