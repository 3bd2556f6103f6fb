from .config import (
    Config as Config,
)
from .config import (
    UserError as UserError,
)
from .config import (
    did_you_mean as did_you_mean,
)
from .config import (
    error_lines as error_lines,
)
from .config import (
    load_function as load_function,
)
from .config import (
    merge_settings as merge_settings,
)
from .config import (
    readable as readable,
)
from .incidental import (
    INCIDENTAL as INCIDENTAL,
)
from .incidental import (
    Incidental as Incidental,
)
from .incidental import (
    decisive_settings as decisive_settings,
)
from .incidental import (
    incidental_settings as incidental_settings,
)
from .installation import how_to_install as how_to_install
from .number_format import (
    PERCENT_UNITS as PERCENT_UNITS,
)
from .number_format import (
    change as change,
)
from .number_format import (
    interval as interval,
)
from .number_format import (
    p_value as p_value,
)
from .number_format import (
    quantity as quantity,
)
from .parts import Part as Part
from .parts import choices_of as choices_of
from .redaction import redacted as redacted
from .redaction import redacted_words as redacted_words
from .terminal import TerminalConsole as TerminalConsole
from .visible import escaped_json as escaped_json
from .visible import visible as visible
