"""Functions of the filters of `curation.filter`, and the run that takes a pool through them.

The configurations are in `vfm_curation`. All are imported here, since a filter is a choice once its class is defined. A
plugin's filter may use `vfm_curation.filters.run.FilterRun` and `vfm_curation.filters.copies.buckets`.
"""

from vfm_curation.filters import head_filters, list_filters, model_filters
from vfm_curation.filters.where import stages as where_filter

__all__ = ["head_filters", "list_filters", "model_filters", "where_filter"]
