# %% [markdown]
# # Fit a scaling law, and see what it is worth
#
# Hoffmann et al. 2022: loss = E + A / N^alpha + B / D^beta for N parameters and D tokens. Here
# losses come from such a law with noise between seeds, so that the fit can be held against the
# truth. A table of real runs has the same form: `tables.read` reads one from a file or from run
# directories, and `jaxlm sweep` trains them.

# %%
import matplotlib.pyplot as plt
import numpy as np

from jaxlm.scaling.laws import bootstrap, fitting, loss_laws, optimum
from jaxlm.scaling.table import Counting, Table

law = loss_laws.LAWS["chinchilla"]
truth = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
rng = np.random.default_rng(0)
budgets = np.repeat(10.0 ** np.arange(17, 21.5, 0.5), 5)
params = (budgets / 120) ** 0.5 * np.tile(2.0 ** np.arange(-2, 3), 9)
tokens = budgets / (6 * params)
theta = [truth[name] for name in law.names]
loss = optimum.loss("chinchilla", theta, params, tokens)
loss = loss * np.exp(rng.normal(0, 0.003, len(loss)))
names = np.array([f"run{i}" for i in range(len(loss))])
runs = Table(params, tokens, budgets, loss, None, names, Counting(), np.arange(len(loss)))

# %% [markdown]
# The fit minimises Huber's loss of log residuals from many starts.

# %%
fit = fitting.fit(law, runs)
for name, value in fit.theta.items():
    print(f"{name:<6}{value:>10.3f}   true {truth[name]}")

# %% [markdown]
# E, A and B trade off against the exponents, so single parameters are loose while predictions are
# tight. What one wants is the optimum: how large a model to train with a budget ten times the
# largest seen. Resampled runs give its spread.

# %%
budget = 10 * budgets.max()
best = optimum.at("chinchilla", fitting.values(fit), budget)
right = optimum.at("chinchilla", theta, budget)
draws = []
for _ in range(40):
    weights = np.bincount(rng.integers(len(loss), size=len(loss)), minlength=len(loss))
    draws.append(fitting.values(fitting.fit(law, runs, weights=weights.astype(float), near=fit)))
spread = optimum.at("chinchilla", np.array(draws), budget)
low, high = bootstrap.interval(spread.params.ravel())
print(f"N* at {budget:.0e} FLOPs: {float(best.params):.3g}, true {float(right.params):.3g}")
print(f"95 % interval: {float(low):.3g} to {float(high):.3g}")

# %%
figure, axes = plt.subplots(figsize=(6, 4))
for budget_row in np.unique(budgets):
    row = budgets == budget_row
    axes.plot(params[row], loss[row], "o-", color="grey", lw=0.5, ms=3)
path = optimum.at("chinchilla", fitting.values(fit), np.unique(budgets))
axes.plot(path.params, path.loss, "r-", label="fitted optimum")
axes.set(xscale="log", xlabel="parameters", ylabel="nats per token")
axes.legend()
figure.savefig("scaling.png")
