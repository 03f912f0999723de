"""Limits on what a process of the grader may use, set by the kernel."""

import math
import resource

MEMORY_BYTES = 2 << 30
"""Address space of a process."""

CPU_S = 5
"""Processor time for one answer [whole seconds]."""

LOAD_CPU_S = 30
"""Processor time for loading a verifier [whole seconds]."""


def limit_memory() -> None:
    """Limit this process and what it starts. A program that a verifier starts may raise the limit for itself."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard), hard)
    )


def allow_cpu_seconds(seconds: int) -> None:
    """Allow this process `seconds` more of processor time, rounded up to the next whole second; then SIGXCPU ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = math.ceil(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))
