from .cost.estimate import estimate_training as estimate_training
from .cost.live_bytes import LiveBytes as LiveBytes
from .loop.alarm import Alarm as Alarm
from .loop.loop import Data as Data
from .loop.loop import fit as fit
from .loop.pictures import show_panels as show_panels
from .loop.training_charts import METRICS_FILE as METRICS_FILE
from .optim.ema import Ema as Ema
from .optim.optim import build_optimizer as build_optimizer
from .optim.optim import set_lr as set_lr
from .parallel.dist import (
    World as World,
)
from .parallel.dist import (
    distributed as distributed,
)
from .parallel.dist import (
    is_main as is_main,
)
from .parallel.dist import (
    prepare_device as prepare_device,
)
from .parallel.dist import (
    resolve_device as resolve_device,
)
from .parallel.dist import (
    seed_everything as seed_everything,
)
from .parallel.kernels import check_kernels as check_kernels
from .parallel.sharing import (
    in_batches as in_batches,
)
from .parallel.sharing import (
    leave_to_first as leave_to_first,
)
from .parallel.sharing import (
    of_all as of_all,
)
from .parallel.sharing import (
    own_share as own_share,
)
from .task import Call as Call
from .task import Frozen as Frozen
from .task import Metrics as Metrics
from .task import Task as Task
from .trained import (
    ParamGroup as ParamGroup,
)
from .trained import (
    TrainedTower as TrainedTower,
)
from .trained import (
    freeze_unused as freeze_unused,
)
from .trained import (
    prepare_towers as prepare_towers,
)
