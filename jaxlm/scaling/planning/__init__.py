"""Plans from a study: back-tests, the choice of a planner, forecasts, the next run."""
