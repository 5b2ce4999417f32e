"""Pure tensor mathematics of GRPO: advantages, surrogate, estimators, divergences, presets."""

from visgrpo.objectives.advantages import advantages as advantages
from visgrpo.objectives.advantages import all_equal as all_equal
from visgrpo.objectives.advantages import combine_rewards as combine_rewards
from visgrpo.objectives.advantages import draw as draw
from visgrpo.objectives.advantages import estimator_weights as estimator_weights
from visgrpo.objectives.advantages import weighted_sum as weighted_sum
from visgrpo.objectives.critic import ValueLoss as ValueLoss
from visgrpo.objectives.critic import gae as gae
from visgrpo.objectives.critic import masked_moments as masked_moments
from visgrpo.objectives.critic import value_loss as value_loss
from visgrpo.objectives.critic import whiten as whiten
from visgrpo.objectives.divergences import categorical_kl as categorical_kl
from visgrpo.objectives.divergences import entropy as entropy
from visgrpo.objectives.divergences import normalized_entropy as normalized_entropy
from visgrpo.objectives.divergences import token_kl as token_kl
from visgrpo.objectives.losses import bradley_terry_loss as bradley_terry_loss
from visgrpo.objectives.presets import PRESETS as PRESETS
from visgrpo.objectives.presets import Objective as Objective
from visgrpo.objectives.presets import check_objective as check_objective
from visgrpo.objectives.presets import preset as preset
from visgrpo.objectives.surrogate import aggregate as aggregate
from visgrpo.objectives.surrogate import most_uncertain as most_uncertain
from visgrpo.objectives.surrogate import on_policy_loss as on_policy_loss
from visgrpo.objectives.surrogate import surrogate as surrogate
