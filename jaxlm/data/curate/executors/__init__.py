"""Engines that run the tasks of a curation: processes of this machine, ranks of a cluster."""
