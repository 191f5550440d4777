"""The default trainer: nnU-Net's supervised recipe.

Source: Isensee et al., Nature Methods 18, 203-211 (2021), rules of the v2 code. Deviations: schedules follow progress
in [0, 1]; bf16 where the hardware has it; plans for short runs (CPU, time budgets) bring AdamW, see
`autoseg.training.recipe`.

Expected: hippocampus MRI (Medical Segmentation Decathlon), full schedule on a GPU: mean Dice 0.89-0.90 (published).
"""

from autoseg import Trainer, register


@register.trainer("supervised")
class Supervised(Trainer):
    """nnU-Net's recipe: cross-entropy and Dice with deep supervision, SGD or the plan's optimiser."""
