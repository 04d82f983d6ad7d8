"""Floor 2: what a model costs before it exists.

flops   operations per token, from the weights' spec
memory  bytes per device under a plan, without the devices
report  both, and the parameters by group, as `jaxlm plan` prints them
"""
