from .config import (
    Config as Config,
    Record as Record,
    UserError as UserError,
    error_lines as error_lines,
    error_text as error_text,
    load_function as load_function,
    merge_settings as merge_settings,
    readable as readable,
)
from .incidental import (
    INCIDENTAL as INCIDENTAL,
    Incidental as Incidental,
    decisive_settings as decisive_settings,
    incidental_settings as incidental_settings,
)
from .installation import how_to_install as how_to_install
from .metric_names import metric_in_words as metric_in_words
from .number_format import (
    PERCENT_UNITS as PERCENT_UNITS,
    change as change,
    interval as interval,
    p_value as p_value,
    quantity as quantity,
)
from .parts import Part as Part, choices_of as choices_of
from .plain_data import (
    drop_keys as drop_keys,
    drop_none as drop_none,
    keep_keys as keep_keys,
    map_items as map_items,
)
from .ray_connection import connected_ray as connected_ray
from .redaction import redacted as redacted, redacted_words as redacted_words
from .sequences import positions as positions, repeated as repeated, stripped as stripped
from .terminal import TerminalConsole as TerminalConsole
from .unknown_keys import did_you_mean as did_you_mean, unknown_key as unknown_key
from .visible import escaped_json as escaped_json, visible as visible
