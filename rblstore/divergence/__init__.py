"""How far two models are apart: KL, JS, entropy, RF, ILS, and the probes they are measured under."""
