"""Laws of loss: their forms, fits, bootstraps and optima."""
