"""A small model learns to count what it sees: SFT, then GRPO. Usage: count_shapes.py [STEPS]"""

import sys

import torch

import visgrpo as vg

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
shapes = vg.read("shapes", "questions").train
targets = vg.answer_targets(shapes, "reasoning")  # "<think>…</think><answer>3</answer>"
sizes = vg.SmallVisionLanguage()
parts = vg.build_vision_language([*shapes.questions[:500], *targets[:500]], sizes, seed=0)
policy = vg.VisionLanguageModel(parts.model)
tokenizer, processor = parts.tokenizer, parts.processor
end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id


def train(method, inputs, batch_size, rate, shown):
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    loader = vg.BatchLoader(shapes, inputs, batch_size=batch_size, seed=0)
    for step, batch in enumerate(loader.batches(0, steps)):
        groups = method.rollout(policy, batch, step, chunk=batch_size)
        result = method.loss(policy, batch, groups, step)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(step, *(f"{name} {result.metrics[name]:.3f}" for name in shown))


answers = vg.VisualInputs(shapes, "reasoning", processor, sizes.context, targets)
train(vg.AnswerTokens(), answers, 32, 2e-3, ("nll",))

rollouts = vg.TokenRollouts(
    rewards=vg.parse_text_rewards(["format", "exact"], None, vg.ANSWER_REWARDS),
    sampling=vg.Sampling(
        vg.TokenDistribution(forbidden=(pad, *processor.placeholder_ids)), 64, (end,), pad
    ),
    group_size=8,
    prompts=vg.visual_prompts(shapes, "reasoning"),
    decode=lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True),
    memory=vg.TokenMemory(),
)
grpo = vg.TokenGRPO(rollouts, vg.preset("grpo"), vg.TokenTerms())
prompts = vg.VisualInputs(shapes, "reasoning", processor, sizes.context - 64)
train(grpo, prompts, 8, 5e-5, ("reward", "rewards/exact/mean"))
