"""How a run goes through time: steps that fit into memory, files that survive, stops and what is watched."""
