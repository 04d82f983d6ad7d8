"""Floor 2: what a model costs before it exists, and what its loss will be.

Costs of a Config
flops     operations per token, from the weights' spec
counting  N and C under a named counting
memory    bytes per device under a plan, without the devices
report    all of it, and the parameters by group, as `jaxlm plan` prints them
ladder    Configs by size; rules: learning rate and batch by size

Laws of loss
table     points (N, D, C, loss) of a file (reading: formats, units, checks) or of run directories
          (directories); experiments: what residuals say about the rows
laws      the forms; richer: those with repeated tokens or varying exponents; downstream: accuracy
fit       one form's optimum, by solve from seeds; identify: which forms the points can tell
bootstrap, profile, warn    how sure, and what should keep one from trusting it
envelope, isoflop, optimum  the best size at each compute: approaches 1, 2 and 3
backtest, approaches        forms on the largest budgets held out; approaches side by side
choose    which run to train next

What is made of them
analysis  a whole study; study: its record; summary, figures: its report, for `jaxlm fit`
extended  accuracy, multipliers, other losses and columns: what `jaxlm fit` does on request
least_squares  batched least squares for these; fixed: parameters that are held
told      what run directories tell of a study's set-up
ahead     plans from a study, for `jaxlm plan-ahead`; forecast: a run's loss before it is trained
ablation  paired runs; sequential: tests while they come in; worth: a loss difference as compute
"""
