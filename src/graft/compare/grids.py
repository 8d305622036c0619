"""Learning rates: each method's default and the grid around it.

One learning rate for all methods only measures which method it happens to suit, so each has its own default and the same
number of trials around it: default x (1, 1/3, 3, 1/9, 9, ...), the default first, so that one trial means the default.

The defaults are for AdamW without weight decay, linear decay, batches of 16 and models of about 135M parameters, in short runs. Each
was the best of the three rates around it, by validation loss, for SmolLM2-135M-Instruct on banking77 and on e2e_nlg, 150 steps
(docs/results.md); only bottleneck's was a little worse than three times it on banking77. Papers' values are for models
ten times as large, longer runs, or Adafactor, and mostly lower:
    lora, dora   2e-4 (Hu 2021; DoRA 1e-4 to 3e-4); short runs want about 15 times full fine-tuning's (Schulman 2025)
    bottleneck   3e-5 to 3e-3 searched (Houlsby 2019), 3e-3 in T-Few's table of adapters
    prefix       5e-5 with an MLP (Li and Liang 2021); flat, started from real text, 5e-3 in HF PEFT's method comparison
    prompt       0.3 with Adafactor (Lester 2021); 1e-3 with AdamW at 3B in HF PEFT's comparison was still too low
    ia3          3e-3 with Adafactor (Liu 2022); 5e-3 beats 1e-3 and 1e-4 with AdamW in HF PEFT's comparison
    bias, norms  1e-3 to 1.6e-3 for biases (Ben Zaken 2021; Hu 2021, GPT-3), 3e-4 for norms (Liu 2022)
    last-k       between full fine-tuning and LoRA
    full         1e-5 to 5e-5 at 7B (Biderman 2024); 1.3e-4 where the fitted rule of Schulman 2025 is read at width 576
"""

from graft.errors import TrainingError

DEFAULT_RATES: dict[str, float] = {
    "lora": 4e-3,
    "dora": 4e-3,
    "bottleneck": 3e-3,
    "prefix": 1e-1,
    "prompt": 5e-2,
    "ia3": 6e-2,
    "bias": 1.5e-2,
    "last-k": 3e-3,
    "norms": 1e-2,
    "full": 2e-4,
}
RATIO = 3.0
DIGITS = 3


def grid(method: str, trials: int) -> tuple[float, ...]:
    """`trials` learning rates for a method, its default first, rounded to three digits.

    Raises TrainingError for a method without a default or for fewer than one trial.
    """
    if method not in DEFAULT_RATES:
        raise TrainingError(f"method {method!r} has no default learning rate; known are {', '.join(DEFAULT_RATES)}.")
    if trials < 1:
        raise TrainingError(f"trials is {trials}; it must be at least 1.")
    powers = [0] + [sign * step for step in range(1, trials) for sign in (-1, 1)]
    return tuple(float(f"{DEFAULT_RATES[method] * RATIO**power:.{DIGITS - 1}e}") for power in powers[:trials])
