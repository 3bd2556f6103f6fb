from .cost.estimate import estimate_training as estimate_training
from .cost.live_bytes import LiveBytes as LiveBytes
from .cost.operations import repeated_forward as repeated_forward
from .loop.alarm import Alarm as Alarm
from .loop.loop import fit as fit
from .loop.panels import show_panels as show_panels
from .loop.source import Data as Data
from .loop.training_charts import METRICS_FILE as METRICS_FILE
from .optim.ema import Ema as Ema
from .optim.optim import build_optimizer as build_optimizer, set_lr as set_lr
from .parallel.dist import (
    DistributedWorld as DistributedWorld,
    distributed as distributed,
    is_main as is_main,
    prepare_device as prepare_device,
    resolve_device as resolve_device,
    seed_everything as seed_everything,
)
from .parallel.first import exporting as exporting, weights_from_first as weights_from_first
from .parallel.kernels import check_kernels as check_kernels
from .parallel.sharing import (
    in_batches as in_batches,
    leave_to_first as leave_to_first,
    of_all as of_all,
    own_share as own_share,
)
from .task import (
    Call as Call,
    Frozen as Frozen,
    Metrics as Metrics,
    Task as Task,
    normalized_weights as normalized_weights,
    relative_weights as relative_weights,
)
from .trained import (
    ParamGroup as ParamGroup,
    TrainedTower as TrainedTower,
    freeze_unused as freeze_unused,
    prepare_towers as prepare_towers,
)
