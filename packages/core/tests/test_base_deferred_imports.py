"""Stand-ins for libraries that timm and open_clip import: absent until they are used, and then the true ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vfm.base.deferred_imports import DEFERRED

START = (
    "import sys; from vfm.base.deferred_imports import defer_unused_imports; defer_unused_imports(); import open_clip"
)
USES = {
    "a function of torch's compiler": """
import torch, torchvision
assert torchvision.ops.roi_align(torch.rand(1, 1, 4, 4), torch.tensor([[0, 0, 0, 2, 2.]]), 2).shape == (1, 1, 2, 2)
assert sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu') in (True, False)
assert torch._dynamo is sys.modules['torch._dynamo']
""",
    "a class of transformers": """
import open_clip.hf_model as models, transformers
from transformers.modeling_outputs import BaseModelOutputWithPooling
assert models.AutoConfig.for_model('bert').model_type == 'bert'
assert models.PretrainedConfig().to_dict() == transformers.PretrainedConfig().to_dict()
assert isinstance(BaseModelOutputWithPooling(), models.BaseModelOutputWithPooling)
assert not isinstance(1, models.BaseModelOutputWithPooling)
assert models.transformers.__doc__ != 1 and models.transformers.AutoModel is transformers.AutoModel
""",
    "a base class": """
import open_clip.hf_model as models, transformers
class Mine(models.PretrainedConfig): pass
assert issubclass(Mine, transformers.PretrainedConfig)
""",
    "parts of torchvision": """
import torch, torchvision
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
assert torchvision.models.resnet18(num_classes=2).fc.out_features == 2
assert issubclass(torchvision.datasets.MNIST, torch.utils.data.Dataset)
assert isinstance(freeze_batch_norm_2d(nn.BatchNorm2d(2)), torchvision.ops.FrozenBatchNorm2d)
assert torchvision.ops.nms(torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([1., 2]), 0.5).tolist() == [1]
""",
    "a function that the compiler leaves alone": """
from timm.models.naflexvit import NaFlexRopeIterator
assert NaFlexRopeIterator.__next__._torchdynamo_disable
""",
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", f"{START}\n{code}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_open_clip_leaves_neither_the_libraries_nor_their_stand_ins() -> None:
    assert run(f"print([name for name in {DEFERRED} if name in sys.modules])") == "[]"
    assert run("import torch; print('_dynamo' in vars(torch))") == "False"


@pytest.mark.parametrize("code", USES.values(), ids=USES)
def test_what_was_taken_from_a_stand_in_is_the_true_thing_when_it_is_used(code: str) -> None:
    if "transformers" in code:
        pytest.importorskip("transformers")
    run(code)


def test_a_library_that_was_imported_before_stays() -> None:
    code = "import torch._dynamo as compiler, sys\n" + START + "\nassert sys.modules['torch._dynamo'] is compiler"
    subprocess.run([sys.executable, "-c", code], check=True)
    again = "assert sum(type(finder).__name__ == '_Importers' for finder in sys.meta_path) == 1"
    run(f"defer_unused_imports()\n{again}")
