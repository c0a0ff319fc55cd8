"""Where the StopGrad targets of self-distillation come from."""
