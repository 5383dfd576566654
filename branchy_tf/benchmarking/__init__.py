"""Times early exit against what people would use instead.

Each contender lives in a process of its own, as it would in service, and all are
timed in turn: what the machine does beside falls on all of them. Ratios within one
run are what to go by.

    comparing -> contenders, processes;  worker (a process) -> *_engine
"""
