"""GRPO on labels, from scratch: read this first. Usage: grpo_loop.py [STEPS]

A small classifier of digits never sees a label. It draws labels for a picture and is told how right
each one was; here right or wrong, but `reward` may be anything: clicks, costs, a judge. What the
library adds to this are other objectives and estimators, models, logs of people, and care.
"""

import copy
import sys

import torch
from sklearn.datasets import load_digits

GROUP, EPSILON, BETA = 8, 0.2, 0.02
BATCH, PASSES, RATE = 64, 2, 3e-3


def reward(drawn_NG, truth_N):
    """1 where a drawn label is right. The policy sees nothing else of the truth."""
    return (drawn_NG == truth_N[:, None]).float()


def advantages(rewards_NG):
    """How much better a label is than the others that were drawn for the same picture."""
    centred_NG = rewards_NG - rewards_NG.mean(dim=1, keepdim=True)
    return centred_NG / (rewards_NG.std(dim=1, keepdim=True) + 1e-4)


def loss_of(policy, reference, x_ND, drawn_NG, old_NG, advantage_NG):
    """The clipped surrogate, and KL to the start, exact over the classes."""
    log_p_NK = policy(x_ND).log_softmax(dim=1)
    ratio_NG = (log_p_NK.gather(1, drawn_NG) - old_NG).exp()
    clipped_NG = ratio_NG.clamp(1 - EPSILON, 1 + EPSILON)
    surrogate = torch.minimum(ratio_NG * advantage_NG, clipped_NG * advantage_NG).mean()
    with torch.no_grad():
        start_NK = reference(x_ND).log_softmax(dim=1)
    kl = (log_p_NK.exp() * (log_p_NK - start_NK)).sum(dim=1).mean()
    return -surrogate + BETA * kl, kl


def main(steps):
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x_MD, y_M = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x_MD))
    train, test = order[:1400], order[1400:]
    policy = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 10))
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE)
    for step in range(steps + 1):
        if step % 50 == 0:
            with torch.no_grad():
                accuracy = (policy(x_MD[test]).argmax(dim=1) == y_M[test]).float().mean()
            print(f"step {step} accuracy {accuracy:.3f}")
        rows = train[torch.randint(len(train), (BATCH,))]
        with torch.no_grad():  # the rollout: draw a group for each picture, and score it
            old_NK = policy(x_MD[rows]).log_softmax(dim=1)
            drawn_NG = torch.multinomial(old_NK.exp(), GROUP, replacement=True)
            old_NG = old_NK.gather(1, drawn_NG)
            advantage_NG = advantages(reward(drawn_NG, y_M[rows]))
        for _ in range(PASSES):  # from the second pass on the ratio is not 1, and the clip acts
            loss, _ = loss_of(policy, reference, x_MD[rows], drawn_NG, old_NG, advantage_NG)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
