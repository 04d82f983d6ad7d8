"""Floor 2: the cost of a model before it exists, and laws of its loss.

cost        parameters, FLOPs and bytes of a Config; ladders of sizes; published rules for rates
table       points (N, D, C, loss), from a file or from run directories
reading     files of runs as people have them: formats, units, implausible rows
laws        forms of loss laws, their exact fits, bootstraps, profiles and optima
approaches  Hoffmann et al.'s three estimates of N*(C), side by side
study       a whole analysis of a table, with diagnostics and a report; `study_record` keeps it,
            in the dataclasses of `study_parts`
planning    rolling back-tests, the choice of a planner, N* and D* with intervals, forecasts
extended    accuracy, multipliers between recipes, other losses and inputs: on request
figures     a study's figures
ablation    paired runs, sequential tests, a difference in loss as compute
"""
