"""From captions to measured models without a recipe file, and a model, a loss and data of your own."""

import torch
from PIL import Image
from torch.nn.functional import cross_entropy

import vfm

train = {"kind": "clip.train", "name": "clip", "model": "ViT-Pico-8-32", "data": "pool", "steps": 60}
pool = {"kind": "shapes.pool", "name": "pool", "num_samples": 600}
recipe = {"stages": [pool, {"kind": "shapes.classes", "name": "val", "num_samples": 144}, train]}


class Brightest(torch.utils.data.Dataset):
    """Images whose brightest colour is their label."""

    def __len__(self):
        return 300

    def __getitem__(self, index):
        image = torch.rand(3, 8, 8)
        image[index % 3] += 0.5
        return image, index % 3


def loss(model, batch):
    logits = model(batch[0])
    return cross_entropy(logits, batch[1]), {"accuracy": (logits.argmax(1) == batch[1]).float().mean()}


run = vfm.run(recipe, set={"clip.global_batch_size": 32, "clip.schedule.warmup_steps": 10})
scores = vfm.evaluate([run["clip"]], run["val"], "zero_shot")
vectors = vfm.embed(run["clip"], run["val"])
guess = vfm.predict(run["clip"], Image.new("RGB", (32, 32), "red"), ["a red square", "a blue circle"])
curated = vfm.curate([f"a {colour} boat" for colour in ("red", "blue")] * 50, set={"entries.min_count": 2})
torch.manual_seed(0)  # the same call again needs the same initial weights
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
fitted = vfm.fit(model, Brightest(), loss=loss, steps=100, lr=0.01, folder="store/brightest")
for results in (run, scores, vectors, guess, curated, fitted):
    results.show()
