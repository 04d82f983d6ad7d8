"""Many runs: sweeps, their scheduler and engines, populations, paired runs."""
