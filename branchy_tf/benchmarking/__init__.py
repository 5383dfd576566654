"""Times early exit against its alternatives.

Each contender runs in its own process, as in service. They are timed in turn, so other
work on the machine affects all alike; only ratios within one run are meaningful.

    comparing -> contenders, processes;  worker (a process) -> *_engine
"""
