"""What a process needs around its work: Ray, child processes, memory, traces, crash points."""
