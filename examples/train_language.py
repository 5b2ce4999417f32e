"""GRPO on a small language model, with a reward in Python. Usage: train_language.py [STEPS]"""

import sys

import torch

import visgrpo as vg


def vowels(completions, **columns):
    """Return the share of vowels in each completion."""
    return [sum(map(text.count, "aeiou")) / max(1, len(text)) for text in completions]


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
text = vg.read("topics", "text")
tokenizer = vg.make_tokenizer("char", text.train.texts)
end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
lm = vg.build_language(  # random; vg.load_language(NAME) has a trained one
    tokenizer, architecture="gpt2", layers=2, width=64, heads=2, context=32, seed=0
)
policy = vg.LanguageModel(lm)
prompts = vg.prompts_from_text(text, tokenizer, tokens=8).train
rollouts = vg.TokenRollouts(
    rewards=vg.parse_text_rewards([vowels], None, {}),
    sampling=vg.Sampling(vg.TokenDistribution(forbidden=(pad,)), 16, (end,), pad),
    group_size=8,
    prompts=prompts.prompts,
    decode=lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True),
    memory=vg.TokenMemory(),
)
grpo = vg.TokenGRPO(rollouts, vg.preset("grpo"), vg.TokenTerms())
tokens = vg.encode_prompts(prompts, tokenizer, max_tokens=8)
loader = vg.BatchLoader(prompts, tokens, batch_size=8, seed=0)
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)

for step, batch in enumerate(loader.batches(0, steps)):
    groups = grpo.rollout(policy, batch, step, chunk=8)  # completions, rewards, advantages
    result = grpo.loss(policy, batch, groups, step)
    result.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0:
        print(step, *(f"{name} {result.metrics[name]:.3f}" for name in ("reward", "entropy")))
