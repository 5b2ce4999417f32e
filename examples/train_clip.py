"""GRPO on a CLIP classifier with the library's pieces. Usage: train_clip.py MODEL [STEPS]"""

import sys

import torch

import visgrpo as vg

data = vg.read("digits")
parts = vg.load_clip(sys.argv[1])
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200
classes = data.train.classes
policy = vg.ClipClassifier(parts.model, parts.tokenizer, classes, ["a photo of a {}."])
vg.adapt(policy, ["image"])
grpo = vg.LabelGRPO(vg.parse_rewards(["hard"], None, classes), vg.preset("grpo"), classes)
pixels = vg.pixel_inputs(data.train, parts.preprocess)
loader = vg.BatchLoader(data.train, pixels, batch_size=64, seed=0)
optimizer = torch.optim.AdamW(vg.trainable_parameters(policy).values(), lr=1e-3)

for step, batch in enumerate(loader.batches(0, steps)):
    result = grpo.loss(policy, batch, None, step)  # draws a group for each image, scores it
    result.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0:
        print(step, *(f"{name} {result.metrics[name]:.3f}" for name in ("reward", "entropy")))
